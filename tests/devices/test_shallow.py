"""Shallow evaluations on the CPU: which network runs, on which rows, with whose features; with
small networks that can be followed in NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from sdfast import noise, program, samplers, schedules
from sdfast.caching import Cache, cached
from sdfast.devices.cpu import Denoiser, Loop, start
from sdfast.guidance import Guidance
from sdfast.schedules import NoiseSchedule
from sdfast.tensors import Tensor

SD = NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)
SHAPE = (2, 4, 8, 6)
STEPS = 9
SIGMAS = schedules.sigmas("karras", STEPS, SD)
ROWS = 0.5 + np.arange(2 * SHAPE[0])[:, None, None, None] / 25  # the context: each row its own


def features_of(latent: NDArray[np.floating], rows: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.tanh(latent) * rows)


def noise_of(latent: NDArray[np.floating], features: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(0.6 * latent + 0.4 * features)


class Shallow:
    """noise from latent and features, on bound tensors; it notes how many rows it ran on."""

    inner = False

    def __init__(self, ran: list[tuple[str, int]]) -> None:
        self.ran = ran
        self.bindings = 0

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        names = ("latent", "context", "features", "noise")
        self._latent, context, self._features, self._noise = (
            np.asarray(tensors[name]) for name in names
        )
        self._context = context[:, None, None, None]
        self.bindings += 1

    def run(self) -> None:
        if self.inner:
            self._features[:] = features_of(self._latent, self._context)
        self._noise[:] = noise_of(self._latent, self._features)
        self.ran.append(("whole" if self.inner else "shallow", len(self._latent)))


class Whole(Shallow):
    """The same, which computes the features anew."""

    inner = True


class Run:
    """A sampler's cached program with both networks; `ran` is what each evaluation ran."""

    def __init__(self, sampler: str, cache: Cache, with_shallow: bool = True) -> None:
        rows = (2 * SHAPE[0], *SHAPE[1:])
        tensors = {name: Tensor.empty(rows, "f32") for name in ("latent", "features", "noise")}
        tensors |= {name: Tensor.empty(rows[:1], "f32") for name in ("timestep", "context")}
        np.asarray(tensors["context"])[:] = ROWS[:, 0, 0, 0]
        np.asarray(tensors["features"])[:] = np.nan  # what nobody wrote may not be read
        self.ran: list[tuple[str, int]] = []
        self.whole, self.shallow = Whole(self.ran), Shallow(self.ran)
        given = self.shallow if with_shallow else None
        denoiser = Denoiser(self.whole, tensors, SHAPE[0], SD, "epsilon", shallow=given)
        traced = cached(program.trace(sampler, SIGMAS), cache)
        self.kind, self.loop = traced.noise, Loop(traced, denoiser, SHAPE)

    def __call__(self, guidance: Guidance) -> NDArray[np.float32]:
        self.ran.clear()
        first, draw = noise.streams(self.kind, "philox", [3, 4])
        start(self.loop.x, SIGMAS[0], first)
        self.loop.run(guidance, draw)
        return np.array(self.loop.result)


def reference(sampler: str, whole: set[int], guidance: Guidance) -> NDArray[np.float64]:
    """The sampler's function in float64, with features of the evaluation before where it is not in
    `whole`."""
    first, draw = noise.streams(samplers.get(sampler).noise, "philox", [3, 4])
    out = Tensor.empty(SHAPE, "f32")
    kept: list[NDArray[np.floating]] = []
    evaluations = 0

    def drawn(sigma: float, sigma_next: float) -> NDArray[np.float64]:
        draw(out, sigma, sigma_next)
        return np.array(out, dtype=np.float64)

    def denoised(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        nonlocal evaluations
        latent = np.concatenate([x / np.sqrt(sigma**2 + 1)] * 2)
        if evaluations in whole:
            kept[:] = [features_of(latent, ROWS)]
        evaluations += 1
        low, high = np.split(noise_of(latent, kept[0]), 2)
        scale = guidance.scale if guidance.acts(sigma) else 1.0
        return np.asarray(x - sigma * (low + scale * (high - low)))

    first(out)
    x = np.array(out, dtype=np.float64) * np.sqrt(SIGMAS[0] ** 2 + 1)
    return np.asarray(samplers.get(sampler).sample(denoised, x, SIGMAS, drawn))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "euler_ancestral"])
@pytest.mark.parametrize("cache", [1, 2, 3, (0, 1, 4, 6)])
@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_a_cached_loop_is_the_sampler_with_the_features_of_before(
    sampler: str, cache: Cache, scale: float
) -> None:
    run, guidance = Run(sampler, cache), Guidance(scale)
    count = samplers.get(sampler).evaluations(STEPS) or 0
    whole = set(range(0, count, cache) if isinstance(cache, int) else cache)
    expected = reference(sampler, whole, guidance)
    for _ in range(2):  # the second run finds the first one's leavings
        got = run(guidance)
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    rows = SHAPE[0] * (1 if scale == 1 else 2)
    kinds = ["whole" if k in whole else "shallow" for k in range(count)]
    assert run.ran == [(kind, rows) for kind in kinds]


def test_a_schedule_of_all_evaluations_is_exact_and_any_other_is_not() -> None:
    exact = Run("dpmpp_2m", 1)(Guidance(4.5))
    assert (Run("dpmpp_2m", tuple(range(STEPS)))(Guidance(4.5)) == exact).all()
    assert np.abs(Run("dpmpp_2m", 2)(Guidance(4.5)) - exact).max() > 1e-3


def test_the_whole_runs_where_features_of_some_rows_are_missing() -> None:
    # Guidance acts at evaluations 3 to 6: it begins within an interval of the cache, and the
    # unguided rows have no features then. Where it ends the guided rows still have theirs.
    run = Run("euler", 8)
    run(Guidance(4.0, interval=(SIGMAS[7], SIGMAS[3])))
    assert run.ran == [
        *[("whole", 2), ("shallow", 2), ("shallow", 2)],
        *[("whole", 4), ("shallow", 4), ("shallow", 4), ("shallow", 4)],
        *[("shallow", 2), ("whole", 2)],
    ]
    # Each network is bound to each of its rows once.
    assert (run.whole.bindings, run.shallow.bindings) == (3, 3)


def test_rows_that_guidance_left_keep_their_features() -> None:
    interval = (SIGMAS[4], SIGMAS[0])  # guidance acts at evaluations 0 to 3
    guidance = Guidance(4.0, interval=interval)
    run = Run("euler", 1000)
    expected = reference("euler", {0}, guidance)
    assert np.abs(run(guidance) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert [kind for kind, _ in run.ran] == ["whole"] + ["shallow"] * (STEPS - 1)


def test_without_the_outermost_part_every_evaluation_runs_the_whole() -> None:
    alone = Run("euler", 3, with_shallow=False)
    assert (alone(Guidance(4.0)) == Run("euler", 1)(Guidance(4.0))).all()
    assert alone.ran == [("whole", 4)] * STEPS
