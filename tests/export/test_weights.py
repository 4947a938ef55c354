"""Weights in safetensors files, which several graphs point into, in both layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdfast.export import precision, weights
from sdfast.export.graph import Graph
from sdfast.export.weights import Place

TENSORS = {
    "a.weight": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    "b.weight": torch.randn(2, 3, generator=torch.Generator().manual_seed(1)),
    "a.bias": torch.randn(4, generator=torch.Generator().manual_seed(2)),
    "unused": torch.randn(1000),
}
X = np.random.default_rng(0).standard_normal((5, 3), np.float32)


def graphs() -> dict[str, Graph]:
    """Two that share a weight: x Wᵀ + b, and x [W, V]ᵀ."""
    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    one, two = Graph(shapes), Graph(shapes)
    product = one.add("MatMul", one.input("x", "f32", ["rows", 3]), weight(one), name="product")
    y = one.add("Add", product, one.weight("a.bias", shape=(1, 4)), name="sum")
    one.output("y", "f32", ["rows", 4], y)
    both = two.weight("ab.weight", ["a.weight", "b.weight"], turned=True)
    x = two.input("x", "f32", ["rows", 3])
    whole = two.add("MatMul", x, both, name="whole")
    two.output("y", "f32", ["rows", 6], two.add("Concat", whole, axis=1, name="y"))
    two.output("z", "f32", ["rows", 4], two.add("MatMul", x, weight(two), name="z"))
    return {"one": one, "two": two}


def weight(g: Graph) -> str:
    return g.weight("a.weight", turned=True)


def expected() -> dict[str, dict[str, np.ndarray]]:
    a, b, bias = (TENSORS[name].numpy() for name in ("a.weight", "b.weight", "a.bias"))
    return {
        "one": {"y": X @ a.T + bias},
        "two": {"y": X @ np.concatenate([a, b]).T, "z": X @ a.T},
    }


def laid(
    folder: Path,
    layout: Any,
    kind: str = "fp32",
    tensors: Mapping[str, torch.Tensor] = TENSORS,
    **more: Any,
) -> dict[str, onnx.ModelProto]:
    """Both graphs written with their weights."""
    made = {name: (g.model(), g.weights) for name, g in graphs().items()}
    forms = [(m, precision.convert(m, w, kind, ())) for m, w in made.values()]
    layout(forms, tensors, folder / "weights.safetensors", **more)
    for name, (model, _) in made.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return {name: model for name, (model, _) in made.items()}


def require_right(folder: Path, tolerance: float = 1e-6) -> None:
    for name, outputs in expected().items():
        session = onnxruntime.InferenceSession(
            folder / f"{name}.onnx", providers=["CPUExecutionProvider"]
        )
        for output, want in outputs.items():
            (got,) = session.run([output], {"x": X})
            assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


LAYOUTS = {"graph": weights.as_graph, "checkpoint": weights.as_checkpoint}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 1e-6), ("fp16", 4e-3)])
def test_graphs_compute_with_the_weights_that_they_point_to(
    tmp_path: Path, layout: str, kind: str, tolerance: float
) -> None:
    laid(tmp_path, LAYOUTS[layout], kind)
    require_right(tmp_path, tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_is_stored_once_and_nothing_else(tmp_path: Path, layout: str) -> None:
    models = laid(tmp_path, LAYOUTS[layout])
    stored = load_file(tmp_path / "weights.safetensors")
    if layout == "graph":  # as the graphs read it
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        assert shapes == {"a.weight": (3, 4), "a.bias": (1, 4), "ab.weight": (3, 6)}
    else:
        assert stored.keys() == {"a.weight", "b.weight", "a.bias"}
        assert all(torch.equal(stored[name], TENSORS[name]) for name in stored)
    places: dict[str, set[tuple[str, ...]]] = {}
    for model in models.values():
        for pointer in model.graph.initializer:
            entries = {e.key: e.value for e in pointer.external_data}
            if entries:
                places.setdefault(pointer.name.removesuffix("@"), set()).add(
                    tuple(entries.values())
                )
    assert places.keys() == stored.keys()
    assert all(len(found) == 1 for found in places.values())
    assert weights.files(models.values()) == ("weights.safetensors",)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_graph_reads_some_rows_of_a_weight(tmp_path: Path, layout: str) -> None:
    g = Graph({"a.weight": (4, 3), "a.bias": (4,)})
    kernel = g.weight("last.weight", ["a.weight"], rows=(1, 4), turned=True)
    product = g.add("MatMul", g.input("x", "f32", ["rows", 3]), kernel, name="product")
    bias = g.weight("last.bias", ["a.bias"], rows=(1, 4))
    g.output("y", "f32", ["rows", 3], g.add("Add", product, bias, name="y"))
    model = g.model()
    LAYOUTS[layout]([(model, g.weights)], TENSORS, tmp_path / "weights.safetensors")
    (tmp_path / "rows.onnx").write_bytes(model.SerializeToString())
    (got,) = onnxruntime.InferenceSession(tmp_path / "rows.onnx").run(["y"], {"x": X})
    a, bias_values = TENSORS["a.weight"].numpy(), TENSORS["a.bias"].numpy()
    assert np.abs(got - (X @ a[1:].T + bias_values[1:])).max() <= 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_external_data_is_the_tensor_aligned_and_inside_of_the_file(
    tmp_path: Path, layout: str
) -> None:
    models = laid(tmp_path, LAYOUTS[layout], "fp16")
    file = tmp_path / "weights.safetensors"
    content, stored = file.read_bytes(), load_file(file)
    for model in models.values():
        for pointer in model.graph.initializer:
            entries = {e.key: e.value for e in pointer.external_data}
            if not entries:
                continue
            start, length = int(entries["offset"]), int(entries["length"])
            tensor = stored[pointer.name.removesuffix("@")]
            assert (entries["location"], tuple(pointer.dims)) == (file.name, tuple(tensor.shape))
            assert start % tensor.element_size() == 0
            assert start + length <= len(content)
            assert content[start : start + length] == tensor.numpy().tobytes()


def test_the_file_is_a_safetensors_file_with_nothing_between_its_tensors(tmp_path: Path) -> None:
    laid(tmp_path, weights.as_graph, "fp16")
    file = tmp_path / "weights.safetensors"
    with safe_open(file, framework="pt") as opened:
        size = sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert (header % 64, file.stat().st_size) == (0, header + size)
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_of_half_precision_stays_so_and_graphs_widen_it(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    models = laid(tmp_path, weights.as_checkpoint, tensors=halves)
    stored = load_file(tmp_path / "weights.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert "Cast" in {node.op_type for node in models["one"].graph.node}
    require_right(tmp_path, 0.02)


def test_tensors_of_other_files_are_pointed_to_there(tmp_path: Path) -> None:
    save_file({"a.weight": TENSORS["a.weight"]}, tmp_path / "own.safetensors")
    start = 8 + int.from_bytes((tmp_path / "own.safetensors").read_bytes()[:8], "little")
    linked = {"a.weight": Place("own.safetensors", start, 48)}
    models = laid(tmp_path, weights.as_checkpoint, linked=linked)
    assert load_file(tmp_path / "weights.safetensors").keys() == {"a.bias", "b.weight"}
    assert weights.files(models.values()) == ("own.safetensors", "weights.safetensors")
    require_right(tmp_path)


def test_no_file_is_written_where_all_lies_in_others(tmp_path: Path) -> None:
    names = ("a.weight", "b.weight", "a.bias")
    linked = {n: Place("x.safetensors", 64 * k, TENSORS[n].nbytes) for k, n in enumerate(names)}
    laid(tmp_path, weights.as_checkpoint, linked=linked)
    assert not (tmp_path / "weights.safetensors").exists()


def test_the_same_weights_make_the_same_bytes(tmp_path: Path) -> None:
    for layout in LAYOUTS.values():
        files = []
        for name in ("first", "second"):
            place = tmp_path / f"{layout.__name__}-{name}"
            place.mkdir()
            laid(place, layout, "fp16")
            files.append([file.read_bytes() for file in sorted(place.iterdir())])
        assert files[0] == files[1]


def test_as_inputs_leaves_constants_where_they_are() -> None:
    g = Graph({"w": (1,)})
    y = g.add("Mul", g.input("x", "f32", ["rows"]), g.number(2.0), name="twice")
    g.output("y", "f32", ["rows"], g.add("Add", y, g.weight("w"), name="sum"))
    model = weights.as_inputs(g.model())
    assert [value.name for value in model.graph.input] == ["x", "w"]
    assert [i.name for i in model.graph.initializer] == ["number 2"]
    onnx.checker.check_model(model, full_check=True)
