"""The gate, with engines of ONNX Runtime and OpenVINO in the candidate's place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from time import sleep

import numpy as np
import pytest

from sdfast import backends, store
from sdfast.backends import Engine, Options, acceptance
from sdfast.backends.acceptance import Place, examples, judge
from sdfast.tensors import Tensor

DEMO = store.load("demo")
CPU = Place(None)
UNET = {
    "latent": ("f32", (2, 4, 16, 16)),
    "time": ("f32", (2, 704)),
    "keys_values": ("f32", (2, 77, DEMO.manifest.networks["unet"].inputs["keys_values"].shape[-1])),
}
NOISE = {
    "noise": ("f32", (2, 4, 16, 16)),
    "features": ("f32", (2, DEMO.manifest.networks["unet"].outputs["features"].shape[1], 16, 16)),
}


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "_RUNS", 2)


@cache
def engine(network: str, backend: str, precision: str = "fp32") -> Engine:
    return backends.open_engine(DEMO.network(network), backend, Options(precision=precision))


class Changed:
    """An engine whose outputs are changed after it ran."""

    def __init__(self, network: Engine, change: str) -> None:
        self._network, self._change = network, change
        self._tensors: Mapping[str, Tensor] = {}

    def bind(self, tensors: Mapping[str, Tensor], /) -> None:
        self._tensors = tensors
        self._network.bind(tensors)

    def run(self, stream: int) -> None:
        self._network.run(stream)
        first = np.asarray(self._tensors[next(iter(self._network.outputs))])
        if self._change == "one NaN":
            first.flat[7] = np.nan
        elif self._change == "infinite":
            first.flat[7] = np.inf
        elif self._change == "mirrored":
            first[...] = first[..., ::-1].copy()
        elif self._change == "one value":
            first.flat[7] += np.abs(first).max()
        elif self._change == "some levels":
            first[:] = np.where(first > 100, first - 2, first)
        elif self._change == "slow":
            sleep(0.3)


def test_an_engine_of_another_library_passes() -> None:
    candidate, portable = engine("unet", "openvino"), engine("unet", "onnxruntime")
    pair = (candidate, CPU), (portable, CPU)
    verdict = judge(*pair, examples(UNET, 1), NOISE, "fp32", timed=False)
    assert verdict.refused is None
    assert verdict.relative is not None
    assert verdict.relative < 1e-3
    assert min(verdict.seconds, verdict.portable_seconds) > 0
    assert "differs by" in str(verdict)


REFUSED = {
    "one NaN": "features is not finite",
    "infinite": "features is not finite",
    "mirrored": "features differs by .*, cosine .*; allowed are 0.05 and 0.9999",
    "one value": "features differs by 1 of its largest value",
    "slow": r"it takes 3\d\d\.\d\d ms, the portable path",
}


@pytest.mark.parametrize("change", REFUSED)
def test_an_engine_that_is_wrong_or_slow_is_refused_with_the_numbers(change: str) -> None:
    candidate = Changed(engine("unet", "onnxruntime"), change)
    verdict = judge(
        (candidate, CPU), (engine("unet", "onnxruntime"), CPU), examples(UNET, 1), NOISE, "fp32"
    )
    assert verdict.refused is not None
    with pytest.raises(AssertionError, match=REFUSED[change]):
        raise AssertionError(verdict.refused)
    if "finite" in REFUSED[change]:
        assert (verdict.relative, verdict.cosine) == (None, None)
        assert "not finite" in str(verdict)


def test_a_slow_engine_passes_where_time_does_not_count() -> None:
    candidate = Changed(engine("unet", "onnxruntime"), "slow")
    pair = (candidate, CPU), (engine("unet", "onnxruntime"), CPU)
    assert judge(*pair, examples(UNET, 1), NOISE, "fp32", timed=False).refused is None


def test_what_an_engine_does_not_write_is_seen() -> None:
    class Idle(Changed):
        def run(self, stream: int) -> None: ...

    pair = (Idle(engine("unet", "onnxruntime"), ""), CPU), (engine("unet", "onnxruntime"), CPU)
    assert judge(*pair, examples(UNET, 1), NOISE, "fp32").refused == "noise is not finite"


def test_pixels_are_compared_in_levels() -> None:
    latent = {"latent": ("f32", (1, 4, 8, 8))}
    image = {"image": ("u8", (1, 64, 64, 3))}
    for change, refused in (("", False), ("some levels", True), ("mirrored", True)):
        candidate = Changed(engine("vae_decoder", "onnxruntime"), change)
        pair = (candidate, CPU), (engine("vae_decoder", "onnxruntime"), CPU)
        verdict = judge(*pair, examples(latent, 1), image, "fp32", timed=False)
        assert (verdict.refused is not None) == refused
        assert verdict.levels is not None
        if refused:
            assert "levels" in str(verdict.refused)


def test_a_wider_bound_lets_more_pass() -> None:
    pair = (engine("unet", "openvino", "bf16"), CPU), (engine("unet", "onnxruntime"), CPU)
    found = {
        precision: judge(*pair, examples(UNET, 1), NOISE, precision, timed=False).refused
        for precision in ("bf16", "int8")
    }
    assert found == {"bf16": None, "int8": None}


def test_examples_are_the_same_for_a_seed_and_like_what_a_run_brings() -> None:
    inputs = {
        "tokens": ("i32", (2, 77)),
        "timestep": ("f32", (3,)),
        "latent": ("f32", (2, 4, 8, 8)),
        "image": ("u8", (1, 16, 16, 3)),
        "sizes": ("f32", (2, 6)),
    }
    first, again, other = (
        {n: np.array(t) for n, t in examples(inputs, 50, seed).items()} for seed in (0, 0, 1)
    )
    for name in inputs:
        assert (first[name] == again[name]).all()
        assert (first[name] != other[name]).any()
    assert 0 <= first["tokens"].min() <= first["tokens"].max() < 50
    assert 0 <= first["timestep"].min() <= first["timestep"].max() < 1000
    assert abs(first["latent"].mean()) < 0.2
    assert 0.8 < first["latent"].std() < 1.2
    assert (first["latent"][0] != first["latent"][1]).any()
