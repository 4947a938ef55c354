"""The graphs of bundles beside the table of operators that TensorRT's ONNX parser takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from sdfast import store
from sdfast.bundle import Bundle
from sdfast.export import export, recipes
from sdfast.export.precision import types

from .conftest import CheckpointOf

TABLE = Path(__file__).parent.parent / "data" / "tensorrt_operators.json"
TYPES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT8: "INT8",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.BOOL: "BOOL",
}


@cache
def table() -> dict[str, set[str]]:
    """The types that each operator takes."""
    groups = json.loads(TABLE.read_text())["operators"]
    return {name: set(kinds.split()) for kinds, names in groups.items() for name in names}


def refused(model: onnx.ModelProto) -> Iterator[str]:
    """What of a graph the parser would not take."""
    lowest, highest = json.loads(TABLE.read_text())["opsets"]
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx") or not lowest <= opset.version <= highest:
            yield f"opset {opset.domain} {opset.version}"
    kinds = types(model)
    for node in model.graph.node:
        if node.op_type not in table():
            yield f"{node.name}: {node.op_type}"
            continue
        touched = {kinds[node.input[0]]} | (
            {kinds[node.output[0]]} if node.op_type == "Cast" else set()
        )
        for kind in touched:
            if TYPES[kind] not in table()[node.op_type]:
                yield f"{node.name}: {node.op_type} of {TYPES[kind]}"


def graphs(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    return {
        name: onnx.load(bundle.network(name), load_external_data=False)
        for name in bundle.manifest.networks
    }


def test_the_demo_bundle_has_nothing_that_is_refused() -> None:
    found = {name: list(refused(model)) for name, model in graphs(store.load("demo")).items()}
    assert found == {name: [] for name in found}


@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_what_is_exported_for_tensorrt_has_nothing_that_is_refused(
    family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    made = export(checkpoint_of(family), tmp_path / family, backend="tensorrt")
    found = {name: list(refused(model)) for name, model in graphs(made).items()}
    assert found == {name: [] for name in found}
    halves = {network.precision for network in made.manifest.networks.values()}
    assert halves == ({"fp16"} if family == "sd15" else {"fp16", "bf16"})


def test_the_check_sees_what_is_refused() -> None:
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3, 2, 2]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
    ]
    nodes = [
        helper.make_node("Transpose", ["image"], ["turned"], "turned", perm=[0, 2, 3, 1]),
        helper.make_node("Det", ["x"], ["d"], "d"),
        helper.make_node("Abs", ["x"], ["y"], "y"),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    assert list(refused(model)) == ["opset  25", "turned: Transpose of UINT8", "d: Det"]


def test_every_recipe_for_tensorrt_is_in_half_precision() -> None:
    """But for the demo's, which are small."""
    for name in recipes.names():
        if not name.startswith("demo"):
            assert "fp32" not in recipes.load(name, "tensorrt").precision.values(), name
