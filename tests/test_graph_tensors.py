"""Inputs and outputs of graphs, read without the onnx package, beside what that reads."""

from __future__ import annotations

from contextlib import suppress

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sdfast import store
from sdfast.graph_tensors import Port, ports

DEMO = store.load("demo")


@pytest.mark.parametrize("name", DEMO.manifest.networks)
def test_they_are_what_onnx_reads(name: str) -> None:
    data = DEMO.network(name).read_bytes()
    graph = onnx.load_model_from_string(data).graph
    for found, wanted in zip(ports(data), (graph.input, graph.output), strict=True):
        assert list(found) == [value.name for value in wanted]
        for port, value in zip(found.values(), wanted, strict=True):
            dims = value.type.tensor_type.shape.dim
            assert port.sides == tuple(d.dim_param or d.dim_value for d in dims)
    listed = DEMO.manifest.networks[name]
    for found, specs in zip(ports(data), (listed.inputs, listed.outputs), strict=True):
        assert {n: p.dtype for n, p in found.items()} == {n: s.dtype for n, s in specs.items()}


def model(kind: int, *sides: int | str | None) -> bytes:
    value = helper.make_tensor_value_info("x", kind, sides)
    output = helper.make_tensor_value_info("y", kind, sides)
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [output])
    made: bytes = helper.make_model(graph).SerializeToString()
    return made


def test_sides_are_numbers_or_names() -> None:
    inputs, outputs = ports(model(TensorProto.FLOAT16, "rows", 300, None, 0))
    assert inputs == {"x": Port("f16", ("rows", 300, "side 2", 0))}
    assert outputs == {"y": inputs["x"]}
    assert ports(model(TensorProto.INT64)) == ({"x": Port("i64", ())}, {"y": Port("i64", ())})


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ValueError, match="x is of ONNX's element type 11"):
        ports(model(TensorProto.DOUBLE, 1))
    for data in (b"", b"\x08\x09not a graph", model(TensorProto.FLOAT, 1)[:-9]):
        with pytest.raises(ValueError, match="it is no"):
            ports(data)


@given(st.binary(max_size=200))
def test_nothing_but_a_value_error_comes_of_any_bytes(data: bytes) -> None:
    with suppress(ValueError):
        ports(data)
    whole = model(TensorProto.FLOAT, "rows", 4)
    with suppress(ValueError):
        ports(whole[: len(data)] + data + whole[len(data) :])
