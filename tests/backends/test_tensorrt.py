"""The TensorRT backend from graph to picture of numbers, with ONNX Runtime in TensorRT's place: the
order of calls, the store, the gate. test_tensorrt_contract.py compares the names with the real
bindings."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import lora_files
import numpy as np
import onnx
import pytest
from backends import tensorrt_on_cpu
from backends.bindings import Bindings
from backends.tensorrt_on_cpu import Gpu
from click.testing import CliRunner

from sdfast import backends, cli, compiled, store
from sdfast.backends import (
    Engine,
    Options,
    acceptance,
    tensorrt,
    tensorrt_build,
    tensorrt_library,
)
from sdfast.backends.tensorrt import TensorRtEngine
from sdfast.backends.tensorrt_plans import Form, Profile, listed
from sdfast.devices.cuda import Keep
from sdfast.errors import BackendUnavailable, BundleError, EngineError, EngineRefused, RecipeError
from sdfast.export.demo.models import CHECKPOINT
from sdfast.export.engines import build_engines
from sdfast.loras import Lora
from sdfast.loras.applied import applied
from sdfast.networks import TEXT_ENCODERS
from sdfast.tensors import Tensor

DEMO = store.load("demo")


@pytest.fixture(scope="module", autouse=True)
def emulated() -> Iterator[None]:
    """TensorRT is the emulated one, on an emulated GPU."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "tensorrt", tensorrt_on_cpu)
        patched.setattr("sdfast.export.engines.Cuda", Gpu)
        patched.setattr(acceptance, "_RUNS", 1)
        patched.setattr(acceptance, "MARGIN", 0.1)  # it is no faster than ONNX Runtime
        tensorrt_library.log.cache_clear()
        yield
        tensorrt_library.log.cache_clear()


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test has an empty one."""
    monkeypatch.setenv("SDFAST_HOME", str(tmp_path / "store"))
    yield
    tensorrt_on_cpu.faults.clear()


@pytest.fixture(scope="module")
def unet_built(emulated: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the demo's U-Net and decoder, built once."""
    place = tmp_path_factory.mktemp("built") / "store"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SDFAST_HOME", str(place))
        built = list(build_engines(DEMO, networks=["unet", "vae_decoder"]))
    assert [outcome.refused for _, outcome in built] == [None] * 9
    return place


@pytest.fixture
def unet(unet_built: Path) -> None:
    """The test's store has the engines of U-Net and decoder."""
    shutil.copytree(unet_built, store.home())


def keep_of(network: str) -> Keep:
    """As the pipeline makes it."""
    listed = DEMO.manifest.networks[network]
    made_of = {name: DEMO.manifest.files[name] for name in (listed.file, *listed.weights)}
    return lambda key, build: compiled.entry(store.home(), {**made_of, **key}, build)


def opened(
    network: str, gpu: Gpu | None = None, replaced: dict[str, np.ndarray] | None = None
) -> TensorRtEngine:
    options = Options(precision="fp32", keep=keep_of(network), gpu=gpu or Gpu())  # type: ignore[arg-type]
    if replaced is not None:
        options = replace(options, replaced=lambda: replaced)
    return tensorrt.open(DEMO.network(network), options)


def tensors(network: str, rows: int, side: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs, and outputs full of NaN."""
    listed = DEMO.manifest.networks[network]
    sides = {"latent": side, "noise": side, "features": side, "image": 8 * side}

    def shape(name: str, spec: tuple[int | None, ...]) -> tuple[int, ...]:
        varying = iter((rows, *(sides[name],) * 2) if name in sides else (rows, 77))
        return tuple(next(varying) if s is None else s for s in spec)

    inputs = {n: (s.dtype, shape(n, s.shape)) for n, s in listed.inputs.items()}
    made = acceptance.examples(inputs, 100, seed)
    return made | {n: Tensor.zeros(shape(n, s.shape), s.dtype) for n, s in listed.outputs.items()}


@cache
def portable(network: str) -> Engine:
    return backends.open_engine(DEMO.network(network), "onnxruntime")


def expected(network: str, bound: dict[str, Tensor], output: str) -> np.ndarray:
    engine = portable(network)
    copies = {name: Tensor.from_dlpack(np.array(tensor)) for name, tensor in bound.items()}
    engine.bind(copies)
    engine.run()
    return np.array(copies[output])


def test_the_emulation_knows_nothing_that_the_bindings_do_not(of_11: Bindings) -> None:
    for name, kind in vars(tensorrt_on_cpu).items():
        if (
            not isinstance(kind, type)
            or kind.__module__ != tensorrt_on_cpu.__name__
            or name == "Gpu"
        ):
            continue
        real = of_11.kinds[name]
        assert set(getattr(kind, "__members__", {})) <= real.members, name
        for method, function in vars(kind).items():
            if method.startswith("_") or not inspect.isfunction(function):
                continue
            parameters = list(inspect.signature(function).parameters)[1:]
            overloads = [list(overload.parameters) for overload in real.methods[method]]
            assert parameters in overloads, f"{name}.{method}"
        made = {n for n, v in vars(kind).items() if isinstance(v, property)}
        assert made <= set(real.properties), name


def test_engines_of_a_bundle_compute_what_onnx_runtime_does() -> None:
    built = [
        (name, outcome) for name, outcome in build_engines(DEMO, networks=["unet", "vae_decoder"])
    ]
    assert all(outcome.refused is None for _, outcome in built)
    gpu = Gpu()
    for network, output, points in (
        ("unet", "noise", [(1, 16), (2, 16), (8, 16), (3, 16), (2, 24)]),
        ("vae_decoder", "image", [(1, 16), (3, 16), (2, 8)]),
    ):
        engine = opened(network, gpu)
        for rows, side in points:
            bound = tensors(network, rows, side)
            engine.bind(bound)
            engine.run(gpu.stream)
            gap = np.asarray(bound[output]) - expected(network, bound, output).astype(np.float64)
            assert np.abs(gap).max() < 1e-3


@pytest.mark.usefixtures("unet")
def test_a_shape_takes_its_own_engine_and_else_the_dynamic_one() -> None:
    plans = [plan.profile for plan in reversed(listed(keep_of("unet")))]
    assert [p.static for p in plans] == [True] * 4 + [False]
    assert [p.best["latent"] for p in plans] == [(n, 4, 16, 16) for n in (1, 2, 4, 8, 2)]
    assert plans[-1].largest["latent"] == (8, 4, 64, 64)
    engine = opened("unet")
    for rows, side, static in [(2, 16, True), (2, 24, False), (3, 16, False)]:
        engine.bind(tensors("unet", rows, side))
        assert engine._loaded[-1][0].profile.static == static
    engine.bind(tensors("unet", 5, 16))
    assert len(engine._loaded) == 2  # the dynamic engine is loaded once


def test_a_network_is_built_once() -> None:
    first = [o.plan for _, o in build_engines(DEMO, networks=["time_projection"])]
    tensorrt_on_cpu.faults.add("unbuildable")
    again = list(build_engines(DEMO, networks=["time_projection"]))
    assert [o.plan for _, o in again] == first
    assert all(o.report is not None for _, o in again)
    assert list(listed(keep_of("time_projection"))) == first


@pytest.mark.usefixtures("unet")
def test_contexts_keep_their_memory_and_share_the_largest() -> None:
    gpu = Gpu()
    unet, decoder = opened("unet", gpu), opened("vae_decoder", gpu)
    small, large = tensors("unet", 1, 16), tensors("unet", 8, 16)
    unet.bind(small)
    before = unet._contexts[tuple(tuple(small[n].shape) for n in unet.inputs)]._block
    unet.bind(large)
    unet.bind(tensors("unet", 2, 16))
    decoder.bind(tensors("vae_decoder", 1, 16))
    blocks = {id(c._block) for e in (unet, decoder) for c in e._contexts.values()}
    assert len(blocks) == 2  # the first, and the larger one that all others share
    unet.bind(small)
    assert unet._context is not None
    assert unet._context._block is before  # a graph that was captured with it writes there
    unet.close()
    decoder.close()
    opened("unet", gpu).bind(small)


@pytest.mark.usefixtures("unet")
def test_binding_again_takes_other_memory_at_the_same_shapes() -> None:
    engine = opened("unet")
    first, second = tensors("unet", 2, 16), tensors("unet", 2, 16, seed=1)
    for bound in (first, second, first):
        engine.bind(bound)
        engine.run()
    assert not np.allclose(np.asarray(first["noise"]), np.asarray(second["noise"]))
    assert len(engine._contexts) == 1


def test_without_an_engine_the_error_says_how_to_build_one(unet_built: Path) -> None:
    engine = opened("unet")
    with pytest.raises(
        BackendUnavailable,
        match=r"no engine of unet.onnx for latent 2×4×16×16, .* on Emulated GPU with TensorRT "
        r"11\.4.*: run `sdfast build BUNDLE --backend tensorrt`",
    ):
        engine.bind(tensors("unet", 2, 16))
    shutil.rmtree(store.home())
    shutil.copytree(unet_built, store.home())
    engine.bind(tensors("unet", 2, 16))
    with pytest.raises(BackendUnavailable, match="latent 16×4×16×16"):
        engine.bind(tensors("unet", 16, 16))


def test_plans_of_another_gpu_or_version_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    list(build_engines(DEMO, networks=["context_projection"]))
    bound = tensors("context_projection", 1, 16)
    opened("context_projection").bind(bound)
    monkeypatch.setattr(tensorrt_on_cpu, "__version__", "11.5.0.1")
    with pytest.raises(BackendUnavailable, match=r"TensorRT 11\.5"):
        opened("context_projection").bind(bound)
    form = Form(version_compatible=True, hardware="ampere-or-later")
    list(build_engines(DEMO, networks=["context_projection"], form=form))
    monkeypatch.setattr(tensorrt_on_cpu, "__version__", "11.6.0.1")
    gpu = Gpu()
    gpu.name, gpu.architecture = "Another", "sm_120"
    engine = opened("context_projection", gpu)
    engine.bind(bound)
    engine.run()
    assert np.abs(np.asarray(bound["keys_values"])).max() > 0


@pytest.mark.usefixtures("unet")
def test_a_plan_that_the_store_has_lost_is_gone_without() -> None:
    for file in (store.home() / "engines").glob("*/network.plan"):
        if json.loads(file.read_bytes())["profile"]["latent"][0] == [2, 4, 16, 16]:
            file.write_bytes(b"altered")
    engine = opened("unet")
    with pytest.warns(match="is damaged"):
        engine.bind(tensors("unet", 2, 16))
    assert not engine._loaded[0][0].profile.static


REFUSED = {
    "wrong": r"keys_values differs by .* of its largest value, cosine .*; allowed are 0\.05",
    "infinite": r"keys_values is not finite",
    "slow": r"it takes 2\d\d\.\d\d ms, the portable path \d+\.\d\d ms",
}


@pytest.mark.parametrize("fault", REFUSED)
def test_an_engine_that_fails_at_the_gate_never_enters_the_store(fault: str) -> None:
    tensorrt_on_cpu.faults.add(fault)
    ((_, outcome),) = build_engines(DEMO, networks=["context_projection"])
    assert isinstance(outcome.refused, EngineRefused)
    assert outcome.report is None
    with pytest.raises(
        EngineRefused,
        match=f"engine of context_projection for context .* is refused: {REFUSED[fault]}",
    ):
        raise outcome.refused
    assert not list((store.home() / "engines").glob("*/network.plan"))
    tensorrt_on_cpu.faults.clear()
    with pytest.raises(BackendUnavailable, match="sdfast build"):
        opened("context_projection").bind(tensors("context_projection", 1, 16))


def test_pixels_are_judged_in_levels() -> None:
    tensorrt_on_cpu.faults.add("wrong")
    outcomes = [o for _, o in build_engines(DEMO, networks=["vae_decoder"])]
    assert all("levels" in str(o.refused) for o in outcomes)


def test_a_graph_that_tensorrt_does_not_take_is_named(tmp_path: Path) -> None:
    info = [onnx.helper.make_tensor_value_info("x", 1, ["rows", 2, 2])]
    out = [onnx.helper.make_tensor_value_info("y", 1, ["rows"])]
    node = onnx.helper.make_node("Det", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", info, out)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    file = tmp_path / "det.onnx"
    file.write_bytes(model.SerializeToString())
    shapes = {"x": (1, 2, 2)}
    plan = tensorrt_build.Plan(Profile(shapes, shapes, shapes), Form(), tensorrt.host(Gpu()))  # type: ignore[arg-type]
    with pytest.raises(
        BundleError, match=r"det\.onnx cannot be compiled .*Det somewhere: no importer"
    ):
        tensorrt_build.compiled(file, ["x"], plan, b"", lambda doing, part: None)
    tensorrt_on_cpu.faults.add("unbuildable")
    with pytest.raises(BundleError, match=r"could not find any implementation"):
        tensorrt_build.compiled(DEMO.network("time_projection"), [], plan, b"", lambda d, p: None)


@pytest.mark.usefixtures("unet")
def test_a_run_that_fails_says_what_to_do() -> None:
    engine = opened("unet")
    engine.bind(tensors("unet", 1, 16))
    tensorrt_on_cpu.faults.add("failing")
    with pytest.raises(
        EngineError, match=r"unet\.onnx failed \(out of memory\): a smaller picture"
    ):
        engine.run()


@pytest.mark.usefixtures("unet")
def test_tensors_of_another_type_or_of_shapes_that_do_not_go_together_are_refused() -> None:
    engine = opened("unet")
    bound = tensors("unet", 1, 16)
    with pytest.raises(ValueError, match="time is i64"):
        engine.bind(bound | {"time": Tensor.zeros((1, 704), "i64")})
    with pytest.raises(
        ValueError, match=r"noise is \(1, 4, 8, 16\); the engine has \(1, 4, 16, 16\)"
    ):
        engine.bind(bound | {"noise": Tensor.zeros((1, 4, 8, 16), "f32")})


def test_tensors_are_those_of_the_manifest() -> None:
    for name, network in DEMO.manifest.networks.items():
        engine = opened(name)
        assert (engine.inputs, engine.outputs) == (network.inputs, network.outputs)
        assert engine.capturable


def test_a_stripped_engine_takes_the_weights_of_the_bundle() -> None:
    list(build_engines(DEMO, networks=["context_projection"], form=Form(stripped=True)))
    bound = tensors("context_projection", 1, 16)
    engine = opened("context_projection")
    engine.bind(bound)
    engine.run()
    found = expected("context_projection", bound, "keys_values")
    assert np.allclose(np.asarray(bound["keys_values"]), found, atol=1e-4)


def test_weights_can_be_replaced_by_name_where_an_engine_was_built_for_it() -> None:
    graph = onnx.load(DEMO.network("context_projection")).graph
    kinds = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
    zeros = {
        i.name: np.zeros(tuple(i.dims), kinds[i.data_type])
        for i in graph.initializer
        if len(i.dims) == 2
    }
    name = next(iter(zeros))
    bound = tensors("context_projection", 1, 16)
    list(build_engines(DEMO, networks=["context_projection"]))
    with pytest.raises(EngineError, match="keeps its weights: build it anew with --refittable"):
        opened("context_projection", replaced=zeros).bind(bound)
    for entry in (store.home() / "engines").iterdir():
        if (entry / "network.plan").is_file():
            (entry / "network.plan").unlink()
    list(build_engines(DEMO, networks=["context_projection"], form=Form(refittable=True)))
    engine = opened("context_projection")
    with pytest.warns(match="is damaged"):
        engine.bind(bound)
    engine.run()
    assert np.abs(np.asarray(bound["keys_values"])).max() > 0
    engine.close()
    damaged = pytest.warns(match="is damaged")
    unknown = pytest.raises(EngineError, match=f"has no weights '{name}s'; did you mean '{name}'")
    with damaged, unknown:
        opened("context_projection", replaced={f"{name}s": zeros[name]}).bind(bound)
    engine = opened("context_projection", replaced=zeros)
    with pytest.warns(match="is damaged"):
        engine.bind(bound)
    engine.run()
    assert np.abs(np.asarray(bound["keys_values"])).max() == 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_lora_is_put_in_by_refit(fused: bool, tmp_path: Path) -> None:
    ink = Lora(lora_files.write(tmp_path / "ink.safetensors", CHECKPOINT, 1), 0.8)
    made = applied(DEMO, [ink])
    list(build_engines(DEMO, networks=["context_projection"], form=Form(refittable=True)))
    if fused:
        tensorrt_on_cpu.faults.add("fused")
    file, options = DEMO.network("context_projection"), Options(precision="fp32")
    options = replace(options, replaced=lambda: made.values("context_projection"))
    bound = tensors("context_projection", 1, 16)
    plain = expected("context_projection", bound, "keys_values")
    there = replace(options, keep=keep_of("context_projection"), gpu=Gpu())  # type: ignore[arg-type]
    found = []
    for engine in (tensorrt.open(file, there), backends.open_engine(file, "onnxruntime", options)):
        engine.bind(bound)
        engine.run()
        found.append(np.array(bound["keys_values"]))
        engine.close()
    assert np.array_equal(*found)
    assert np.abs(found[0] - plain).max() > 0.1


def test_progress_is_told_and_what_it_raises_stops_the_build() -> None:
    said: list[tuple[str, str, float]] = []
    list(build_engines(DEMO, networks=["context_projection"], tell=lambda *what: said.append(what)))
    parts = [part for _, doing, part in said if doing in ("Building", "Timing kernels")]
    assert parts == sorted(parts)
    assert (parts[0], parts[-1]) == (0.0, 1.0)
    assert {name for name, _, _ in said} == {"context_projection"}

    def stop(name: str, doing: str, part: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(build_engines(DEMO, networks=["time_projection"], tell=stop))
    assert not [f for f in (store.home() / "engines").glob(".*") if f.is_dir()]


def test_timings_are_kept_for_the_next_build_and_dropped_where_they_do_not_fit() -> None:
    list(build_engines(DEMO, networks=["context_projection"]))
    (file,) = (store.home() / "engines").glob("*/timing.cache")
    first = file.read_bytes()
    list(build_engines(DEMO, networks=["text_encoder"]))
    (file,) = (store.home() / "engines").glob("*/timing.cache")
    assert file.read_bytes() == first + b"."
    assert (
        tensorrt_build.compiled(
            DEMO.network("time_projection"), [], _plan(), b"another driver's", lambda d, p: None
        )[1]
        == b"."
    )


def _plan() -> tensorrt_build.Plan:
    return tensorrt_build.Plan(Profile({}, {}, {}), Form(), tensorrt.host(Gpu()))  # type: ignore[arg-type]


def test_the_inspector_tells_fused_attentions() -> None:
    ((_, first),) = build_engines(DEMO, networks=["text_encoder"])
    assert first.report is not None
    attentions = _operators("text_encoder")
    assert first.report.layers.attentions == attentions
    assert first.report.layers.kinds == {"kgen": attentions, "CaskConvolution": 1}
    brief = tensorrt_build.layers('{"Layers": ["conv", "fmha_v2"]}', 5)
    assert (brief.kinds, brief.attentions, brief.activations) == ({"unknown": 2}, 1, 5)


def test_a_recipe_or_network_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="recipe sdxl is for sdxl, the bundle is sd1"):
        next(build_engines(DEMO, recipe="sdxl"))
    with pytest.raises(RecipeError, match="no network 'unett'; did you mean 'unet'"):
        next(build_engines(DEMO, networks=["unett"]))
    with pytest.raises(
        BackendUnavailable, match=r"unet_adapters cannot be built: .* residual_0\.rows"
    ):
        next(build_engines(DEMO, networks=["unet_adapters"]))


def test_the_command_builds_and_reports() -> None:
    words = ["build", "demo", "--network", "context_projection", "--network", "text_encoder"]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0, done.stderr
    assert "context_projection for context 1×77×96\n    fp32, " in done.stdout
    assert (
        f"text_encoder for tokens 1×77\n    fp32, {_operators('text_encoder') + 1} layers"
        in done.stdout
    )
    assert "attentions fused" in done.stdout
    assert "ms, the portable path" in done.stdout
    again = CliRunner().invoke(cli.main, words)
    assert again.stdout == done.stdout


def _operators(network: str) -> int:
    return DEMO.manifest.networks[network].graph.operators["Attention"]


def test_the_command_fails_where_an_engine_was_refused() -> None:
    tensorrt_on_cpu.faults.add("infinite")
    done = CliRunner().invoke(cli.main, ["build", "demo", "--network", "context_projection"])
    assert done.exit_code == 1
    assert (
        "context_projection for context 1×77×96 is refused: keys_values is not finite"
        in done.stderr
    )
    assert "1 of 1 engines were refused" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--backend", "openvino"], "nothing is built for backend 'openvino'"),
        (
            ["--hardware", "ampere"],
            "hardware 'ampere' is unknown; use one of this, same-capability",
        ),
        (["--recipe", "sdxl"], "recipe sdxl is for sdxl"),
    ],
)
def test_a_mistake_is_one_clear_sentence(words: list[str], expected: str) -> None:
    done = CliRunner().invoke(cli.main, ["build", "demo", *words])
    assert done.exit_code == 2
    assert expected in done.stderr


def test_it_says_why_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tensorrt.reason_unusable() is None
    assert "GPUs alone" in str(tensorrt.reason_unusable("cpu"))
    for version in ("12.0.1", "9.3.0", "10.0.1"):
        monkeypatch.setattr(tensorrt_on_cpu, "__version__", version)
        assert f"TensorRT is {version}; it must be 10.1 or later" in str(tensorrt.reason_unusable())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert 'pip install "sdfast[tensorrt]"' in str(tensorrt.reason_unusable())
    with pytest.raises(BackendUnavailable, match="cannot be imported"):
        next(build_engines(DEMO))


def test_precision_is_the_graphs() -> None:
    assert tensorrt.precision("auto") == tensorrt.precision("fp32") == "fp32"
    with pytest.raises(BackendUnavailable, match="--backend tensorrt or --precision fp16"):
        tensorrt.precision("fp16")
    with pytest.raises(BackendUnavailable, match="GPUs alone"):
        tensorrt.open(DEMO.network("unet"), Options(precision="fp32"))


def test_all_networks_of_a_picture_are_built_when_none_are_named() -> None:
    built = dict.fromkeys(name for name, _ in build_engines(DEMO))
    encoders = [name for name in TEXT_ENCODERS if name in DEMO.manifest.networks]
    assert list(built) == [
        *encoders,
        "time_projection",
        "context_projection",
        "unet",
        "unet_shallow",
        "vae_decoder",
    ]
