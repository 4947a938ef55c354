"""Engines of the TensorRT backend, run with ONNX Runtime in TensorRT's place: the order of calls,
which engine takes a shape, memory, the store. test_tensorrt_contract.py compares the names with
the real bindings."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from backends import tensorrt_on_cpu
from backends.demo_engines import DEMO, expected, keep_of, opened, tensors
from backends.tensorrt_on_cpu import Gpu

from sdfast import store
from sdfast.backends import Options, tensorrt
from sdfast.backends.tensorrt_plans import Form, listed
from sdfast.errors import BackendUnavailable, EngineError
from sdfast.export.engines import build_engines
from sdfast.tensors import Tensor

pytestmark = pytest.mark.usefixtures("emulated", "own_store")


@pytest.mark.usefixtures("unet")
def test_engines_of_a_bundle_compute_what_onnx_runtime_does() -> None:
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


@pytest.mark.usefixtures("unet")
def test_a_plan_that_the_store_has_lost_is_gone_without() -> None:
    for file in (store.home() / "engines").glob("*/network.plan"):
        if json.loads(file.read_bytes())["profile"]["latent"][0] == [2, 4, 16, 16]:
            file.write_bytes(b"altered")
    engine = opened("unet")
    with pytest.warns(match="is damaged"):
        engine.bind(tensors("unet", 2, 16))
    assert not engine._loaded[0][0].profile.static


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
