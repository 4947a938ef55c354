"""int8: what is rounded, how, and how near the result is on both backends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto
from safetensors import safe_open

from sdfast.bundle import Bundle
from sdfast.errors import CheckpointError, RecipeError
from sdfast.export import export, quantization, recipes, verify, weights
from sdfast.export.graph import Graph
from sdfast.export.networks.layers import conv, linear
from sdfast.export.quantization import Span

from .conftest import CheckpointOf

CHECKPOINT = Path(__file__).parents[2] / "export" / "demo" / "checkpoint"
RANDOM = torch.Generator().manual_seed(0)
TENSORS = {
    "first.weight": torch.randn(32, 4, 3, 3, generator=RANDOM),
    "middle.weight": torch.randn(32, 32, 3, 3, generator=RANDOM),
    "middle.bias": torch.randn(32, generator=RANDOM),
    "last.weight": torch.randn(48, 32, generator=RANDOM),
}
X = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)


def chain() -> Graph:
    """x → first → middle → tokens → last → y: convolutions, and a product of tokens."""
    g = Graph({name: tuple(tensor.shape) for name, tensor in TENSORS.items()})
    y = conv(g, g.input("x", "f32", ["rows", 4, 8, 8]), "first")
    y = conv(g, y, "middle")
    y = g.add("Reshape", y, g.integers([0, 32, -1]), name="flat")
    y = g.add("Transpose", y, name="tokens", perm=[0, 2, 1])
    g.output("y", "f32", ["rows", 64, 48], linear(g, y, "last"))
    return g


def exact() -> dict[str, torch.Tensor]:
    first = torch.conv2d(torch.from_numpy(X), TENSORS["first.weight"], padding=1)
    middle = torch.conv2d(first, TENSORS["middle.weight"], TENSORS["middle.bias"], padding=1)
    tokens = middle.flatten(2).mT
    y = tokens @ TENSORS["last.weight"].T
    return {"first": first, "middle": middle, "tokens": tokens, "y": y}


def spans_of(values: dict[str, torch.Tensor]) -> dict[str, Span]:
    return {n: Span(float(v.min()), float(v.max())) for n, v in values.items()}


LAYOUTS = {"graph": weights.as_graph, "checkpoint": weights.as_checkpoint}


def written(folder: Path, layout: str) -> onnx.ModelProto:
    g = chain()
    model = g.model()
    forms = quantization.convert(model, g.weights, spans_of(exact()))
    LAYOUTS[layout]([(model, forms)], TENSORS, folder / "weights.safetensors")
    (folder / "chain.onnx").write_bytes(model.SerializeToString())
    return model


def test_a_span_holds_zero_and_rounds_to_half_a_step() -> None:
    for span in (Span(-0.25, 4.0), Span(1.0, 3.0), Span(-3.0, -1.0), Span(0.0, 0.0)):
        values = np.linspace(span.low, span.high, 1000)
        steps = np.rint(values / span.scale()) + span.zero()
        assert steps.min() >= -0.5
        assert steps.max() <= 255.5
        back = (np.clip(steps, 0, 255) - span.zero()) * span.scale()
        assert np.abs(back - values).max() <= span.scale() * 1.01
        assert 0 <= span.zero() <= 255  # a padding of zeros is exact


def test_layers_at_the_latent_stay_as_they_are() -> None:
    g = chain()
    model = g.model()
    assert [n.name for n in quantization.layers(model, g.weights)] == ["middle", "last"]
    assert quantization.left_out(model, g.weights) == ("first",)
    assert quantization.rounded(model, g.weights) == ["first", "middle", "tokens"]


def test_spans_are_the_extremes_over_all_runs(tmp_path: Path) -> None:
    g = chain()
    model = g.model()
    weights.as_graph([(model, g.weights)], TENSORS, tmp_path / "weights.safetensors")
    (tmp_path / "chain.onnx").write_bytes(model.SerializeToString())
    names = ["first", "middle", "tokens"]
    feeds = ({"x": x} for x in (X[:1], X[1:]))
    found = quantization.spans(tmp_path / "chain.onnx", names, feeds)
    for name, span in spans_of({n: exact()[n] for n in names}).items():
        assert found[name].low == pytest.approx(span.low, rel=1e-5)
        assert found[name].high == pytest.approx(span.high, rel=1e-5)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".onnx", ".safetensors"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_stored_in_eight_bits_and_once(tmp_path: Path, layout: str) -> None:
    written(tmp_path, layout)
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    eight = {name for name, kind in kinds.items() if kind == torch.int8}
    assert eight == {"middle.weight.int8", "last.weight.int8"}
    assert not {"middle.weight", "last.weight"} & kinds.keys()
    for name, axis in (("middle", 0), ("last", 1)):
        values, scale = stored[f"{name}.weight.int8"], stored[f"{name}.weight.scale"]
        values = values if axis == 0 else values.T  # as the graph multiplies by it
        assert values.abs().flatten(1).amax(1).eq(127).all()  # every output uses the whole range
        sides = [-1] + [1] * (values.dim() - 1)
        gap = (values * scale.view(sides) - TENSORS[f"{name}.weight"]).abs()
        assert (gap <= scale.view(sides) * 0.501).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_backends_compute_what_the_rounding_leaves(tmp_path: Path, layout: str) -> None:
    model = written(tmp_path, layout)
    onnx.checker.check_model(weights.as_inputs(model), full_check=True)
    want = exact()["y"].numpy()
    file = tmp_path / "chain.onnx"
    (ort,) = onnxruntime.InferenceSession(file).run(["y"], {"x": X})
    (ov,) = openvino.Core().compile_model(str(file), "CPU")({"x": X}).values()
    for got in (ort, ov):
        found = verify.compare(got, want)
        # Three tensors rounded to 1/255 of their range, some 5 standard deviations wide.
        assert (found.cosine > 0.999, found.relative < 0.05) == (True, True), found
        assert found.relative > 1e-4  # it is rounded indeed


def kernels(file: Path) -> set[str]:
    """What OpenVINO computes the products of a graph with."""
    core = openvino.Core()
    compiled = core.compile_model(str(file), "CPU", {"PERF_COUNT": True})
    request = compiled.create_infer_request()
    request.infer({"x": X})
    kinds = ("Convolution", "FullyConnected", "MatMul")
    return {p.exec_type.lower() for p in request.profiling_info if p.node_type in kinds}


def test_products_run_in_kernels_of_integers(tmp_path: Path) -> None:
    written(tmp_path, "graph")
    assert any(kind.endswith("i8") for kind in kernels(tmp_path / "chain.onnx"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tmp_path / "chain.onnx", options)
    operators = {n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert {"QLinearConv", "MatMulIntegerToFloat"} <= operators


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model's bundle: a trained one, whose error says something."""
    place = tmp_path_factory.mktemp("int8") / "bundle"
    return export(CHECKPOINT, place, recipe="demo", precision="int8")


def test_a_bundle_says_what_is_int8_and_how_far_it_is(int8: Bundle) -> None:
    networks = int8.manifest.networks
    eight = {name for name, network in networks.items() if network.precision == "int8"}
    assert eight == {"unet", "unet_shallow", "unet_adapters", "vae_decoder"}
    assert {n.precision for name, n in networks.items() if name not in eight} == {"fp32"}
    assert networks["unet"].kept == ("conv_in", "conv_out")
    assert verify.within(networks["unet"].difference, "int8", pixels=False)
    assert networks["unet"].difference.relative > 1e-3
    ranges = json.loads((int8.path / "ranges.json").read_text())
    assert ranges.keys() == eight
    assert all(low <= high for low, high in ranges["unet"].values())
    assert networks["unet"].difference.cosine > 0.99  # a trained model, several channels a group
    (note,) = (note for note in int8.manifest.notes if note.startswith("picture of"))
    assert float(note.split(": ")[1].split()[0]) >= 25  # decibels from torch's picture


def test_the_unets_share_their_eight_bit_weights(int8: Bundle) -> None:
    def places(name: str) -> dict[str, tuple[str, ...]]:
        model = onnx.load(int8.path / f"{name}.onnx", load_external_data=False)
        return {
            i.name: tuple(entry.value for entry in i.external_data)
            for i in model.graph.initializer
            if i.data_type == TensorProto.INT8
        }

    plain, adapters = places("unet"), places("unet_adapters")
    assert plain
    assert plain.items() <= adapters.items()


def test_an_int8_bundles_graphs_are_its_own(
    int8: Bundle, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"is int8.*without --graph-from"):
        export(checkpoint_of("sd15", 1), tmp_path / "made", graph_from=int8.path)


def test_int8_needs_pictures_from_text_alone(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"calibrated.*task inpaint.*fp32, fp16 or bf16"):
        export(checkpoint_of("sd15-inpaint"), tmp_path / "made", precision="int8")


def test_a_recipe_quantizes_what_can_be(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = (recipes.packaged() / "sd15.toml").read_text()
    file.write_text(text.replace('precision = "fp32"', 'precision = "int8"'))
    precision = recipes.load(file).precision
    assert {n for n, kind in precision.items() if kind == "int8"} == {
        *("unet", "unet_shallow", "unet_adapters", "vae_decoder")
    }
    named = "[backend.onnxruntime]\nprecision = {{ {} = 'int8' }}\n"
    file.write_text(text + named.format("vae_decoder"))
    assert [n for n, k in recipes.load(file).precision.items() if k == "int8"] == ["vae_decoder"]
    file.write_text(text + named.format("text_encoder"))
    with pytest.raises(RecipeError, match=r"precision\.text_encoder is int8, which unet"):
        recipes.load(file)
