"""Graphs that point where they should not, in every place that ONNX allows a tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sdfast import bundle, checksums, external_data, store
from sdfast.errors import BundleError


def tensor(location: str) -> TensorProto:
    made = TensorProto(name="w", dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        made.external_data.add(key=key, value=value)
    return made


def model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def graph(*nodes: onnx.NodeProto, initializer: list[TensorProto] | None = None) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", 1, [1])
    return helper.make_graph(nodes, "g", [], [output], initializer or [])


def sparse(location: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor("in.bin"), indices=tensor(location), dims=[1])


def with_sparse_initializer(location: str) -> onnx.ModelProto:
    made = graph()
    made.sparse_initializer.append(sparse(location))
    return model(made)


def with_function(location: str) -> onnx.ModelProto:
    made = model(graph())
    node = helper.make_node("Constant", [], ["y"], value=tensor(location))
    made.functions.append(
        helper.make_function("own", "F", [], ["y"], [node], [helper.make_opsetid("", 23)])
    )
    return made


def with_training(location: str) -> onnx.ModelProto:
    made = model(graph())
    made.training_info.add(algorithm=graph(initializer=[tensor(location)]))
    return made


def constant(**attributes: object) -> onnx.ModelProto:
    return model(graph(helper.make_node("Constant", [], ["y"], **attributes)))


PLACES: dict[str, Callable[[str], onnx.ModelProto]] = {
    "initializer": lambda x: model(graph(initializer=[tensor(x)])),
    "sparse initializer": with_sparse_initializer,
    "constant": lambda x: constant(value=tensor(x)),
    "list of constants": lambda x: constant(values=[tensor("in.bin"), tensor(x)]),
    "sparse constant": lambda x: constant(sparse_value=sparse(x)),
    "graph in a node": lambda x: constant(body=graph(initializer=[tensor(x)])),
    "graphs in a node": lambda x: constant(bodies=[graph(), graph(initializer=[tensor(x)])]),
    "function": with_function,
    "training": with_training,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_location_is_found_wherever_a_tensor_may_be(place: str) -> None:
    made = PLACES[place]("../x.bin").SerializeToString()
    assert external_data.locations(made) - {"in.bin"} == {"../x.bin"}


def test_the_demos_graphs_read_their_weights_alone() -> None:
    demo = store.load("demo")
    for name, network in demo.manifest.networks.items():
        assert external_data.locations(demo.network(name).read_bytes()) == set(network.weights)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with suppress(ValueError):
        external_data.locations(content)


@given(st.data())
def test_damaged_graphs_are_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(PLACES["function"]("x.bin").SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        external_data.locations(bytes(content))


def field(number: int, content: bytes) -> bytes:
    """A message as a field of another."""
    length, size = len(content), b""
    while length > 0x7F:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def test_graphs_in_graphs_without_end_are_refused() -> None:
    content = b""
    for _ in range(1000):  # a graph in an attribute of a node of a graph
        content = field(1, field(5, field(6, content)))
    with pytest.raises(ValueError, match="no ONNX model"):
        external_data.locations(field(7, content))


def load_with(copied: Path, graph: bytes) -> None:
    """Loads the bundle with another graph; its checksums are right, as whoever alters a bundle
    can make them."""
    file = copied / "time_projection.onnx"
    file.write_bytes(graph)
    manifest = json.loads((copied / "bundle.json").read_text())
    manifest["files"][file.name] = checksums.sha256(file)
    (copied / "bundle.json").write_text(json.dumps(manifest))
    bundle.load(copied)


OUTSIDE = ("../secret.bin", "/etc/hostname", "tokenizer/../../secret.bin", "vae.safetensors", "")


@pytest.mark.parametrize("location", OUTSIDE)
def test_a_bundle_whose_graph_reads_other_files_is_not_loaded(copied: Path, location: str) -> None:
    (copied.parent / "secret.bin").write_bytes(bytes(4))
    reads = re.escape(f"reads {location!r}, which is not among its weights")
    with pytest.raises(BundleError, match=rf"time_projection\.onnx of bundle .* {reads}"):
        load_with(copied, PLACES["initializer"](location).SerializeToString())


def test_a_bundle_whose_graph_is_none_is_not_loaded(copied: Path) -> None:
    with pytest.raises(BundleError, match=r"time_projection\.onnx of bundle .* is no graph"):
        load_with(copied, b"not a graph")


def test_a_graph_may_read_its_own_weights(copied: Path) -> None:
    load_with(copied, PLACES["initializer"]("./unet.safetensors").SerializeToString())
