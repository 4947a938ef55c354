"""fp8 and int8 as TensorRT takes them: which layers are rounded, how they are written, by which
steps, and what pictures they draw."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors import safe_open

from sdfast import store
from sdfast.backends import Options
from sdfast.bundle import Bundle
from sdfast.errors import CheckpointError, RecipeError
from sdfast.export import export, modelopt, precision, recipes, symmetric, verify, weights
from sdfast.export.demo import scenes
from sdfast.export.graph import Graph
from sdfast.export.networks.layers import conv, linear
from sdfast.pipeline import Pipeline
from sdfast.request import Request

from .conftest import CheckpointOf
from .test_tensorrt_operators import graphs, refused

CHECKPOINT = Path(__file__).parents[2] / "export" / "demo" / "checkpoint"
KINDS = ["fp8", "int8-fp16"]
ELEMENTS = {"fp8": TensorProto.FLOAT8E4M3FN, "int8-fp16": TensorProto.INT8}
calibrated = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason="nvidia-modelopt is not installed"
)

RANDOM = torch.Generator().manual_seed(0)
TENSORS = {
    "conv_in.weight": torch.randn(32, 4, 3, 3, generator=RANDOM),
    "middle.weight": torch.randn(32, 32, 3, 3, generator=RANDOM),
    "middle.bias": torch.randn(32, generator=RANDOM),
    "conv_shortcut.weight": torch.randn(32, 32, 1, 1, generator=RANDOM),
    "last.weight": torch.randn(48, 32, generator=RANDOM),
    "beside.weight": torch.randn(48, 32, generator=RANDOM) * 1e-6,
}
X = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)


def chain() -> Graph:
    """x → conv_in → middle + conv_shortcut → tokens → last + beside → y."""
    g = Graph({name: tuple(tensor.shape) for name, tensor in TENSORS.items()})
    x = conv(g, g.input("x", "f32", ["rows", 4, 8, 8]), "conv_in")
    y = g.add("Add", conv(g, x, "middle"), conv(g, x, "conv_shortcut"), name="sum")
    y = g.add("Reshape", y, g.integers([0, 32, -1]), name="flat")
    y = g.add("Transpose", y, name="tokens", perm=[0, 2, 1])
    y = g.add("Add", linear(g, y, "last"), linear(g, y, "beside"), name="both")
    g.output("y", "f32", ["rows", 64, 48], y)
    return g


def exact() -> dict[str, torch.Tensor]:
    """What each of the chain's layers reads, and y."""
    x = torch.conv2d(torch.from_numpy(X), TENSORS["conv_in.weight"], padding=1)
    y = torch.conv2d(x, TENSORS["middle.weight"], TENSORS["middle.bias"], padding=1)
    y = (y + torch.conv2d(x, TENSORS["conv_shortcut.weight"])).flatten(2).mT
    products = [y @ TENSORS[f"{name}.weight"].T for name in ("last", "beside")]
    return {"middle": x, "last": y, "beside": y, "y": sum(products)}


def steps(kind: str) -> dict[str, float]:
    read = exact()
    return {
        name: float(read[name].abs().max()) / symmetric.KINDS[kind].reach
        for name in ("middle", "last", "beside")
    }


LAYOUTS = {"graph": weights.as_graph, "checkpoint": weights.as_checkpoint}


def written(
    folder: Path, kind: str, layout: str = "graph", kept: Sequence[str] = ()
) -> onnx.ModelProto:
    g = chain()
    model = g.model()
    forms = precision.convert(model, g.weights, "fp16", kept)
    forms = symmetric.convert(model, forms, kind, steps(kind))
    LAYOUTS[layout]([(model, forms)], TENSORS, folder / "weights.safetensors")
    (folder / "chain.onnx").write_bytes(model.SerializeToString())
    return model


def test_what_depends_little_on_speed_and_much_on_precision_is_left_out() -> None:
    g = chain()
    chosen = symmetric.layers(g.model(), g.weights)
    assert [node.op_type for node in chosen] == ["Conv", "MatMul", "MatMul"]
    assert [node.input[1] for node in chosen] == ["middle.weight", "last.weight", "beside.weight"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_stored_in_eight_bits(tmp_path: Path, kind: str, layout: str) -> None:
    written(tmp_path, kind, layout)
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    eight = torch.float8_e4m3fn if kind == "fp8" else torch.int8
    names = {f"{name}.weight" for name in ("middle", "last", "beside")}
    assert {name for name, t in stored.items() if t.dtype == eight} == {f"{n}.eight" for n in names}
    assert not names & stored.keys()
    reach = symmetric.KINDS[kind].reach
    for name in ("middle", "last"):
        axis = 0 if name == "middle" else 1
        values, scale = (stored[f"{name}.weight.{end}"].float() for end in ("eight", "scale"))
        assert stored[f"{name}.weight.scale"].dtype == torch.float16
        values = values if axis == 0 else values.T  # as the graph multiplies by it
        assert values.abs().flatten(1).amax(1).sub(reach).abs().max() <= reach / 16
        sides = [-1] + [1] * (values.dim() - 1)
        want, step = TENSORS[f"{name}.weight"], scale.view(sides)
        # Half a step of int8; of float8 with its three digits, or half of its least number.
        bound = step * 0.501 if kind != "fp8" else (want.abs() / 16).clamp(min=step * 2**-10) * 1.01
        assert ((values * step - want).abs() <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_rounded_graph_computes_what_is_left(tmp_path: Path, kind: str) -> None:
    model = written(tmp_path, kind)
    onnx.checker.check_model(weights.as_inputs(model), full_check=True)
    want = exact()["y"].numpy()
    (as_it_is,) = onnxruntime.InferenceSession(tmp_path / "chain.onnx").run(["y"], {"x": X})
    for got in (as_it_is, verify.opened(tmp_path / "chain.onnx", kind)({"x": X})["y"]):
        found = verify.compare(got, want)
        assert (found.cosine > 0.998, found.relative < 0.1) == (True, True), found
        assert found.relative > 1e-3  # it is rounded indeed


def test_tensors_that_two_layers_read_are_rounded_once(tmp_path: Path) -> None:
    model = written(tmp_path, "fp8")
    rounded = [n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert len(rounded) == len(set(rounded)) == 2


def check(model: onnx.ModelProto, layers: set[str], kind: str) -> None:
    """Pairs of symmetric steps around these layers and no others, float16 around them."""
    by = {name: node for node in model.graph.node for name in node.output}
    kinds = precision.types(model)
    stored = {i.name: i for i in model.graph.initializer}
    around = set()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul"):
            assert all(by[n].op_type != "DequantizeLinear" for n in node.input if n in by)
            continue
        made = [by.get(name) for name in node.input[:2]]
        if not any(n is not None and n.op_type == "DequantizeLinear" for n in made):
            continue
        around.add(node.name)
        activation, weight = made
        assert activation is not None
        assert weight is not None
        quantize = by[activation.input[0]]
        assert quantize.op_type == "QuantizeLinear"
        assert list(quantize.input[1:]) == list(activation.input[1:])
        step, zero = (stored[name] for name in activation.input[1:])
        assert (list(step.dims), list(zero.dims)) == ([], [])
        assert not numpy_helper.to_array(zero).astype(np.float32).any()
        assert numpy_helper.to_array(step) > 0
        assert zero.data_type == kinds[weight.input[0]] == ELEMENTS[kind]
        assert len(weight.input) == 2  # a zero of 0
        axis = next(a.i for a in weight.attribute if a.name == "axis")
        values, scale = (stored[name] for name in weight.input)
        assert axis == (0 if node.op_type == "Conv" else 1)
        assert list(scale.dims) == [values.dims[axis]]
        # fp16 in and out.
        found = {kinds[n] for n in (quantize.input[0], *activation.output, *weight.input[1:])}
        assert found | {kinds[node.output[0]]} == {TensorProto.FLOAT16}
    assert around == layers


@pytest.mark.parametrize("kind", KINDS)
def test_the_chain_has_pairs_around_its_layers(tmp_path: Path, kind: str) -> None:
    model = written(tmp_path, kind)
    check(model, {"middle", "last", "beside"}, kind)
    assert list(refused(model)) == []


def test_layers_in_float32_stay_so(tmp_path: Path) -> None:
    """As do those whose inputs float16 cannot hold."""
    model = written(tmp_path, "fp8", kept=["tokens"])
    check(model, {"middle"}, "fp8")
    got = verify.opened(tmp_path / "chain.onnx", "fp8")({"x": X})["y"]
    assert verify.compare(got, exact()["y"].numpy()).cosine > 0.998


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """demo(kind): the demo model's bundle for TensorRT."""
    place = tmp_path_factory.mktemp("eight")

    @cache
    def made(kind: str) -> Bundle:
        word = "int8" if kind == "int8-fp16" else kind
        recipe = place / f"{word}.toml"
        text = (recipes.packaged() / "demo.toml").read_text()
        table = f'[backend.tensorrt]\nprecision = "{word}"\n'
        recipe.write_text(text + table)
        return export(CHECKPOINT, place / kind, recipe=recipe, backend="tensorrt")

    return made


DENOISERS = {"unet", "unet_shallow", "unet_adapters"}
ROUNDED = {"fp8": DENOISERS, "int8-fp16": DENOISERS | {"vae_decoder"}}


@calibrated
@pytest.mark.parametrize("kind", ["fp8", pytest.param("int8-fp16", marks=pytest.mark.slow)])
def test_a_bundles_graphs_have_pairs_around_the_chosen_layers(
    demo: Callable[[str], Bundle], kind: str
) -> None:
    made = demo(kind)
    networks = made.manifest.networks
    assert {n for n, network in networks.items() if network.precision == kind} == ROUNDED[kind]
    assert {n.precision for name, n in networks.items() if name not in ROUNDED[kind]} == {"fp16"}
    found = json.loads((made.path / "steps.json").read_text())
    assert found.keys() == ROUNDED[kind]
    for name, model in graphs(made).items():
        assert list(refused(model)) == []
        check(model, set(found.get(name, {})), kind)
    unet = graphs(made)["unet"]
    products = {n.name for n in unet.graph.node if n.op_type in ("Conv", "MatMul")}
    left_out = {n for n in products if n.startswith("conv_") or n.endswith("conv_shortcut")}
    assert len(left_out) > 2
    assert found["unet"].keys() == products - left_out


@calibrated
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_float32(demo: Callable[[str], Bundle], kind: str) -> None:
    """But inputs, outputs, and what is so in a graph in fp16."""
    unet = graphs(demo(kind))["unet"]
    kinds = precision.types(unet)
    wide = {
        node.op_type
        for node in unet.graph.node
        if TensorProto.FLOAT in {kinds[name] for name in (*node.input, *node.output) if name}
    }
    assert wide <= {"Cast", "Resize"}  # Resize's factors
    assert demo(kind).manifest.networks["unet"].kept == ()


@calibrated
@pytest.mark.parametrize("kind", KINDS)
def test_the_unets_share_their_weights(demo: Callable[[str], Bundle], kind: str) -> None:
    def places(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
        return {
            i.name: tuple(entry.value for entry in i.external_data)
            for i in model.graph.initializer
            if i.data_type == ELEMENTS[kind] and i.external_data
        }

    found = graphs(demo(kind))
    assert places(found["unet"])
    assert places(found["unet"]).items() <= places(found["unet_adapters"]).items()


@calibrated
@pytest.mark.parametrize("kind", KINDS)
def test_the_demos_pictures_are_those_of_float32(demo: Callable[[str], Bundle], kind: str) -> None:
    """44 dB at 20 steps (37 to 48 in int8, by the picture)."""
    asked = Request("a small red circle on a blue background", seed=0, steps=10)
    pictures = []
    for bundle in (store.load("demo"), demo(kind)):
        pipeline = Pipeline(bundle, "onnxruntime", Options())
        pictures.append(np.asarray(pipeline(asked).images[0]))
        pipeline.close()
    exactly, got = pictures
    assert verify.psnr(got, exactly) > 30
    reading = scenes.read(got)
    assert (reading.shape, reading.colour, reading.background) == ("circle", "red", "blue")
    unet = demo(kind).manifest.networks["unet"]
    assert unet.difference.cosine > 0.995
    assert unet.difference.relative > 1e-3


class Chain(torch.nn.Module):
    """The chain in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = torch.nn.Conv2d(4, 32, 3, padding=1, bias=False)
        self.middle = torch.nn.Conv2d(32, 32, 3, padding=1)
        self.conv_shortcut = torch.nn.Conv2d(32, 32, 1, bias=False)
        self.last = torch.nn.Linear(32, 48, bias=False)
        self.beside = torch.nn.Linear(32, 48, bias=False)
        self.load_state_dict(TENSORS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        y = (self.middle(x) + self.conv_shortcut(x)).flatten(2).mT
        return self.last(y) + self.beside(y)


@calibrated
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_made_of_the_largest_magnitude_of_all_runs(kind: str) -> None:
    def run(module: torch.nn.Module) -> None:
        with torch.no_grad():
            for x in (X[:1], X[1:]):
                module(torch.from_numpy(x))

    g = chain()
    found = symmetric.scales(g.model(), g.weights, kind, modelopt.largest(Chain(), run))
    assert found == {name: pytest.approx(step, rel=1e-5) for name, step in steps(kind).items()}


@calibrated
@pytest.mark.parametrize("kind", KINDS)
def test_our_graph_computes_what_modelopts_own_rounding_does(tmp_path: Path, kind: str) -> None:
    bits = (4, 3) if kind == "fp8" else 8
    rounded = [
        {"quantizer_name": f"*{name}.{part}_quantizer", "cfg": {"num_bits": bits, "axis": axis}}
        for name in steps(kind)
        for part, axis in (("input", None), ("weight", 0))
    ]
    config = {
        "quant_cfg": [{"quantizer_name": "*", "enable": False}, *rounded],
        "algorithm": "max",
    }
    module, x = Chain(), torch.from_numpy(X)
    with torch.no_grad():
        modelopt.require().quantize(module, config, lambda module: module(x))
        theirs = module(x).numpy()
    written(tmp_path, kind)
    ours = verify.opened(tmp_path / "chain.onnx", kind)({"x": X})["y"]
    between, from_exact = verify.compare(ours, theirs), verify.compare(ours, exact()["y"].numpy())
    # float16, which the rest is in here and not there, moves some 3 % of values by a step of int8:
    # a third of the squared error that rounding makes of all.
    assert 1 - between.cosine < 0.5 * (1 - from_exact.cosine), (between, from_exact)


def test_without_modelopt_an_export_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(modelopt, "import_module", missing)
    with pytest.raises(RecipeError, match=r"pip install 'sdfast\[modelopt\]'"):
        export(CHECKPOINT, tmp_path / "made", recipe="demo", backend="tensorrt", precision="fp8")
    assert not (tmp_path / "made").exists()


@calibrated
def test_an_fp8_bundles_graphs_are_its_own(
    demo: Callable[[str], Bundle], checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"is fp8.*without --graph-from"):
        export(checkpoint_of("sd15", 1), tmp_path / "made", graph_from=demo("fp8").path)


def test_fp8_needs_pictures_from_text_alone(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"fp8 is calibrated.*task inpaint"):
        export(
            checkpoint_of("sd15-inpaint"), tmp_path / "made", backend="tensorrt", precision="fp8"
        )
