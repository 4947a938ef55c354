"""Graphs of half precision: what is rounded and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx import TensorProto

from sdfast.export import manifest, precision, random_checkpoint, sources, verify, weights
from sdfast.export.components import Checkpoint
from sdfast.export.graph import Graph
from sdfast.export.networks import PLAIN, Options
from sdfast.export.plan import Planned, plan

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small one of the family that has every kind of layer."""
    return sources.read(random_checkpoint("tiny-sdxl", tmp_path_factory.mktemp("checkpoint")))


def converted(
    checkpoint: Checkpoint, options: Options, kind: str
) -> Iterator[tuple[Planned, onnx.ModelProto]]:
    for networks in plan(checkpoint, options).values():
        for p in networks:
            model = p.graph.model()
            precision.convert(model, p.graph.weights, kind, ())
            yield p, model


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("options", [Options(), PLAIN], ids=["all", "plain"])
def test_graphs_are_valid_and_take_and_give_float32(
    sdxl: Checkpoint, options: Options, kind: str
) -> None:
    for p, model in converted(sdxl, options, kind):
        before = p.graph.model().graph
        for ours, theirs in (
            (model.graph.input, before.input),
            (model.graph.output, before.output),
        ):
            assert [(v.name, v.type) for v in ours] == [(v.name, v.type) for v in theirs]
        onnx.checker.check_model(weights.as_inputs(model), full_check=True)


@pytest.mark.parametrize("options", [Options(), PLAIN], ids=["all", "plain"])
def test_products_are_in_half_precision_and_what_accumulates_in_float32(
    sdxl: Checkpoint, options: Options
) -> None:
    seen = set()
    for _, model in converted(sdxl, options, "fp16"):
        kinds = precision.types(model)
        for node in model.graph.node:
            attributes = {a.name: a.i for a in node.attribute}
            inputs = {kinds[name] for name in node.input if name} & precision.FLOATS
            if node.op_type in ("MatMul", "Conv", "Gemm"):
                assert inputs == {HALF}, node.name
            if node.op_type in ("Softmax", "InstanceNormalization", "Cos", "Sin", "Round"):
                assert inputs == {FLOAT}, node.name
            if node.op_type == "Attention":
                assert (inputs, attributes["softmax_precision"]) == ({HALF}, FLOAT), node.name
            if node.op_type in ("GroupNormalization", "LayerNormalization"):
                # The standard's default, and what the attribute would have to be.
                assert (inputs, attributes.get("stash_type", FLOAT)) == ({HALF}, FLOAT), node.name
            seen.add(node.op_type)
    fused = {"Attention", "GroupNormalization"}
    assert seen >= (fused if options != PLAIN else {"Softmax", "InstanceNormalization"})


def chain() -> Graph:
    """y = b (x a) + b, by way of "first" and "second"."""
    g = Graph({"a": (1,), "b": (1,)})
    x = g.input("x", "f32", ["rows"])
    first = g.add("Mul", x, g.weight("a"), name="first")
    second = g.add("Mul", first, g.weight("b"), name="second")
    g.output("y", "f32", ["rows"], g.add("Add", second, g.weight("b"), name="sum"))
    return g


def test_what_is_kept_stays_float32_with_the_operators_that_touch_it() -> None:
    g = chain()
    model = g.model()
    forms = precision.convert(model, g.weights, "fp16", ["first"])
    kinds = precision.types(model)
    by_name = {node.name: node for node in model.graph.node}
    for name, kind in (("first", FLOAT), ("second", FLOAT), ("sum", HALF)):
        node = by_name[name]
        assert {kinds[value] for value in (*node.input, *node.output)} == {kind}, name
    # b is read in both precisions, so that it is stored in both.
    stored = {i.name: i.data_type for i in model.graph.initializer}
    assert sorted(stored.values()) == [FLOAT, FLOAT, HALF]
    assert {forms[name].parts for name in stored} == {("a",), ("b",)}
    onnx.checker.check_model(weights.as_inputs(model), full_check=True)


def test_float32_changes_nothing() -> None:
    g = chain()
    model = g.model()
    assert precision.convert(model, g.weights, "fp32", ()) == g.weights
    assert model == g.model()


def test_magnitudes_are_those_of_numpy(tmp_path: Path) -> None:
    g = chain()
    model = g.model()
    tensors = {"a": torch.tensor([-3.0]), "b": torch.tensor([100.0])}
    weights.as_graph([(model, g.weights)], tensors, tmp_path / "weights.safetensors")
    (tmp_path / "chain.onnx").write_bytes(model.SerializeToString())
    runs = [np.array(x, np.float32) for x in ([1, -2], [0.5, 1.5, -1])]
    found = precision.magnitudes(tmp_path / "chain.onnx", [{"x": x} for x in runs])
    every = np.concatenate(runs) * np.float32(-3)
    wanted = {"first": every, "second": every * 100, "y": every * 100 + 100}
    assert found == {name: float(np.abs(values).max()) for name, values in wanted.items()}
    assert sorted(f.name for f in tmp_path.iterdir()) == ["chain.onnx", "weights.safetensors"]
    broken = precision.magnitudes(
        tmp_path / "chain.onnx",
        [{"x": np.array([np.nan, 1], np.float32)}, {"x": np.ones(1, np.float32)}],
    )
    assert set(broken.values()) == {np.inf}  # NaN is larger than all that is finite


def test_tensors_within_a_factor_of_4_of_the_end_are_kept() -> None:
    end = 65504.0
    largest = {"small": 1.0, "half": end / 5, "near": end / 4, "over": 1e6, "lost": np.inf}
    assert precision.too_large(largest) == ("near", "over", "lost")


def test_openvino_runs_bf16(sdxl: Checkpoint, tmp_path: Path) -> None:
    """As a backend does: nothing of it is emulated."""
    options = Options(hoisted_context=False, hoisted_time=False)
    p = plan(sdxl, options)["unet"][0]
    component, model = sdxl.components["unet"], p.graph.model()
    forms = precision.convert(model, p.graph.weights, "bf16", ())
    weights.as_graph([(model, forms)], component.weights, tmp_path / "weights.safetensors")
    (tmp_path / "unet.onnx").write_bytes(model.SerializeToString())
    core = openvino.Core()
    hint = {"INFERENCE_PRECISION_HINT": "f32"}  # what the graph says, and nothing narrower
    network = core.compile_model(str(tmp_path / "unet.onnx"), "CPU", hint)
    for example in verify.examples(p, component.module(), manifest.unit(sdxl), options):
        noise = network(verify.feed(p, example.inputs, {}))["noise"]
        found = verify.compare(noise, example.expected["noise"].numpy())
        assert verify.within(found, "bf16", pixels=False), found
        assert found.relative > 1e-4  # it is bfloat16 indeed
