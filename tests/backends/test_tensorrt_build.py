"""Engines of the TensorRT backend, built with ONNX Runtime in TensorRT's place: from graph to plan,
the gate, the store, the command."""

from __future__ import annotations

import inspect
from pathlib import Path

import onnx
import pytest
from backends import tensorrt_on_cpu
from backends.bindings import Bindings
from backends.demo_engines import DEMO, keep_of, opened, tensors
from backends.tensorrt_on_cpu import Gpu
from click.testing import CliRunner

from sdfast import cli, store
from sdfast.backends import tensorrt, tensorrt_build
from sdfast.backends.tensorrt_plans import Form, Profile, listed
from sdfast.errors import BackendUnavailable, BundleError, EngineRefused, RecipeError
from sdfast.export.engines import build_engines
from sdfast.networks import TEXT_ENCODERS

pytestmark = pytest.mark.usefixtures("emulated", "own_store")


def test_the_emulation_knows_nothing_that_the_bindings_do_not(of_11: Bindings) -> None:
    kinds = {n: kind for n, kind in vars(tensorrt_on_cpu).items() if isinstance(kind, type)}
    del kinds["Gpu"]
    assert len(kinds) > 20
    for name, kind in kinds.items():
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


def test_a_network_is_built_once() -> None:
    first = [o.plan for _, o in build_engines(DEMO, networks=["time_projection"])]
    tensorrt_on_cpu.faults.add("unbuildable")
    again = list(build_engines(DEMO, networks=["time_projection"]))
    assert [o.plan for _, o in again] == first
    assert all(o.report is not None for _, o in again)
    assert list(listed(keep_of("time_projection"))) == first


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
