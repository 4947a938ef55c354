"""The loop on the CPU against the sampler itself, with a small linear network in the U-Net's
place: what is tested is everything around it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from sdfast import _core, noise, program, samplers, schedules
from sdfast.devices.cpu import Denoiser, HostRun, Loop, TimeTable, start
from sdfast.guidance import Guidance
from sdfast.schedules import NoiseSchedule
from sdfast.tensors import Tensor

SD = NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)
SHAPE = (2, 4, 8, 6)


class Network:
    """noise = latent · context + timestep / 20000, on bound tensors; context is 0.88 + row / 25.
    As of a trained network, what is left of high noise is of the size of a picture."""

    def __init__(self, rows: int) -> None:
        shape = (rows * SHAPE[0], *SHAPE[1:])
        self.tensors = {
            "latent": Tensor.empty(shape, "f32"),
            "timestep": Tensor.empty(shape[:1], "f32"),
            "context": Tensor.empty(shape[:1], "f32"),
            "noise": Tensor.empty(shape, "f32"),
        }
        np.asarray(self.tensors["context"])[:] = 0.88 + np.arange(shape[0]) / 25
        self.bindings = 0

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        arrays = [np.asarray(tensors[n]) for n in ("latent", "timestep", "context", "noise")]
        self._latent, self._timestep, self._context, self._noise = arrays
        self.batch = len(self._latent)
        self.bindings += 1

    def run(self) -> None:
        np.multiply(self._latent, self._context[:, None, None, None], out=self._noise)
        self._noise += self._timestep[:, None, None, None] / 20000


def denoiser(network: Network) -> Denoiser:
    return Denoiser(network, network.tensors, SHAPE[0], SD, "epsilon")


def looped(traced: program.Program, network: Network) -> Loop:
    return Loop(traced, denoiser(network), SHAPE)


def begun(
    run: Loop | HostRun, sigmas: Sequence[float], seed: int = 0, kind: str = "gaussian"
) -> noise.Draw:
    """x filled for a run of two images; the noise that follows."""
    first, draw = noise.streams(kind, "philox", [seed, seed + 1])
    start(run.x, sigmas[0], first)
    return draw


def reference(
    name: str, sigmas: Sequence[float], rows: int, guidance: Guidance, seed: int
) -> NDArray[np.float64]:
    sampler = samplers.get(name)
    first, draw = noise.streams(sampler.noise, "philox", [seed, seed + 1])
    out = Tensor.empty(SHAPE, "f32")

    def drawn(sigma: float, sigma_next: float) -> NDArray[np.float64]:
        draw(out, sigma, sigma_next)
        return np.array(out, dtype=np.float64)

    def denoised(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        scaled, t = x / np.sqrt(sigma**2 + 1), SD.timestep(sigma) / 20000
        factor = 0.88 + np.arange(rows * SHAPE[0])[:, None, None, None] / 25
        halves = np.split(np.concatenate([scaled] * rows) * factor + t, rows)
        low, high = guidance.interval or (0, np.inf)
        scale = guidance.scale if low < sigma <= high else 1
        return x - sigma * (halves[0] + scale * (halves[-1] - halves[0]))

    first(out)
    x = np.array(out, dtype=np.float64) * np.sqrt(sigmas[0] ** 2 + 1)
    return np.asarray(sampler.sample(denoised, x, sigmas, drawn))


STATIC = [name for name in samplers.names() if samplers.get(name).static]


def relative_error(got: Tensor, expected: NDArray[np.float64]) -> float:
    return float(np.abs(np.asarray(got) - expected).max() / np.abs(expected).max())


# Where float32 is too short for 1e-5: ttm divides the difference of two denoised by delta (1e-3).
SHORT = {"ttm": 3e-3}


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize(
    ("rows", "guidance"),
    [
        (1, Guidance(1.0)),
        (2, Guidance(1.0)),
        (2, Guidance(4.5)),
        (2, Guidance(4.5, interval=(0.3, 3.0))),
    ],
)
def test_the_loop_is_the_sampler(name: str, rows: int, guidance: Guidance) -> None:
    sigmas = schedules.sigmas("karras", 12, SD)
    loop = looped(program.trace(name, sigmas), Network(rows))
    for seed in (3, 11):  # the second run finds the first one's leavings
        loop.run(guidance, begun(loop, sigmas, seed, samplers.get(name).noise))
        expected = reference(name, sigmas, rows, guidance, seed)
        assert relative_error(loop.result, expected) <= SHORT.get(name, 1e-5)


PARTS = {
    "whole": slice(None),
    "from the middle": slice(-6, None),
    "to the middle": slice(None, 7),
    "short of 0": slice(None, -1),
}


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 100])
@pytest.mark.parametrize("part", PARTS)
def test_any_part_of_a_run_is_the_sampler_to_float32(name: str, steps: int, part: str) -> None:
    sigmas = schedules.sigmas("karras", steps, SD)[PARTS[part]]
    if len(sigmas) < 2:
        sigmas = (SD.sigma_max, 1.0)
    loop = looped(program.trace(name, sigmas), Network(1))
    loop.run(Guidance(1.0), begun(loop, sigmas, 5, samplers.get(name).noise))
    expected = reference(name, sigmas, 1, Guidance(1.0), 5)
    assert relative_error(loop.result, expected) <= SHORT.get(name, 1e-5)


@pytest.mark.parametrize("name", ["dpm_adaptive", "supreme"])
def test_a_sampler_that_depends_on_data_runs_as_its_function(name: str) -> None:
    sigmas = schedules.sigmas("karras", 8, SD)
    run = HostRun(samplers.get(name), sigmas, {}, denoiser(Network(2)), SHAPE)
    counts: list[tuple[int, int | None]] = []
    for seed in (3, 11):
        draw = begun(run, sigmas, seed)
        run.run(Guidance(4.5), draw, lambda done, of, _: counts.append((done, of)))
        expected = reference(name, sigmas, 2, Guidance(4.5), seed)
        # The network answers in float32, and what comes of it is fed back.
        assert relative_error(run.result, expected) <= 1e-5
    assert counts[-1][1] == samplers.get(name).evaluations(8)


def test_only_steps_inside_the_interval_evaluate_both_halves() -> None:
    sigmas = schedules.sigmas("karras", 12, SD)
    network = Network(2)
    loop = looped(program.trace("euler", sigmas), network)
    draw = begun(loop, sigmas)
    # A border that is a step's own noise level: guidance acts at the upper one, not at the lower.
    guidance, batches = Guidance(4.0, interval=(sigmas[7], sigmas[3])), list[int]()
    loop.run(guidance, draw, lambda done, of, _: batches.append(network.batch))
    assert batches == [2] * 3 + [4] * 4 + [2] * 5
    assert network.bindings == 3


def test_an_interval_that_holds_every_step_changes_no_bit() -> None:
    sigmas = schedules.sigmas("karras", 8, SD)
    network = Network(2)
    loop = looped(program.trace("dpmpp_2m", sigmas), network)
    found = []
    for guidance in (Guidance(4.0), Guidance(4.0, interval=(0.0, 100.0))):
        draw = begun(loop, sigmas)
        loop.run(guidance, draw)
        found.append(np.array(loop.result))
    assert (found[0] == found[1]).all()


def test_rescale_reaches_the_latents() -> None:
    network = Network(2)
    sigmas = (5.0, 0.0)  # one Euler step to 0: the result is D itself
    loop = looped(program.trace("euler", sigmas), network)
    draw = begun(loop, sigmas)
    x, expected = loop.x, Tensor.empty(SHAPE, "f32")
    before = Tensor.from_dlpack(np.array(x))
    loop.run(Guidance(4.0, rescale=0.7), draw)
    _core.guide(expected, network.tensors["noise"], before, 5.0, 4.0, "epsilon", 0.7)
    difference = np.abs(np.asarray(loop.result) - np.asarray(expected)).max()
    assert difference <= 1e-5  # float32, of values up to 20
    plain = Tensor.empty(SHAPE, "f32")
    _core.guide(plain, network.tensors["noise"], before, 5.0, 4.0, "epsilon")
    assert np.abs(np.asarray(plain) - np.asarray(expected)).max() > 0.1


def test_progress_counts_evaluations_and_may_end_the_run() -> None:
    sigmas = schedules.sigmas("karras", 5, SD)
    network = Network(1)
    loop = looped(program.trace("euler", sigmas), network)
    seen: list[tuple[int, int | None]] = []
    draw = begun(loop, sigmas)
    loop.run(Guidance(1.0), draw, lambda done, of, _: seen.append((done, of)))
    assert seen == [(k, 5) for k in range(1, 6)]

    def stop(done: int, of: int | None, denoised: Tensor) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(Guidance(1.0), draw, stop)


class Times:
    """time = timestep / 20000, on bound tensors."""

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        self._timestep, self._time = (np.asarray(tensors[n]) for n in ("timestep", "time"))

    def run(self) -> None:
        np.divide(self._timestep[:, None], 20000, out=self._time)


class Hoisted(Network):
    """Network with timestep / 20000 given as time."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.tensors["time"] = Tensor.empty((rows * SHAPE[0], 1), "f32")

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        super().bind(tensors)
        self._time = np.asarray(tensors["time"])

    def run(self) -> None:
        np.multiply(self._latent, self._context[:, None, None, None], out=self._noise)
        self._noise += self._time[:, :, None, None]


def tabled(traced: program.Program, rows: int) -> Loop:
    network = Hoisted(rows)
    sigmas = [i.sigma for i in traced.instructions if isinstance(i, program.Eval)]
    timesteps = list(dict.fromkeys(map(SD.timestep, sigmas)))
    count = rows * len(timesteps)
    tensors = {
        "timestep": Tensor.empty((count,), "f32"),
        "time": Tensor.empty((count, 1), "f32"),
    }
    table = TimeTable(Times(), tensors, timesteps, network.tensors["time"])
    table.compute()
    return Loop(traced, Denoiser(network, network.tensors, SHAPE[0], SD, "epsilon", table), SHAPE)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2s_ancestral"])
@pytest.mark.parametrize(
    ("rows", "guidance"),
    [(1, Guidance(1.0)), (2, Guidance(4.5)), (2, Guidance(4.5, interval=(0.3, 3.0)))],
)
def test_a_table_of_times_is_the_timesteps_bit_for_bit(
    name: str, rows: int, guidance: Guidance
) -> None:
    sigmas = schedules.sigmas("karras", 12, SD)
    traced = program.trace(name, sigmas)
    plain = looped(traced, Network(rows))
    hoisted = tabled(traced, rows)
    for loop in (plain, hoisted):
        loop.run(guidance, begun(loop, sigmas))
    assert (np.asarray(plain.result) == np.asarray(hoisted.result)).all()


def peak(loop: Loop, steps: int) -> int:
    """What Python allocates at most during a run, in bytes beyond what was there: the least of
    several runs, since other threads of a test runner allocate as well."""
    draw, found = begun(loop, schedules.sigmas("karras", steps, SD)), list[int]()
    loop.run(Guidance(4.0), draw)
    for _ in range(5):
        tracemalloc.start()
        loop.run(Guidance(4.0), draw)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return min(found)


@pytest.mark.parametrize("hoisted", [False, True])
def test_a_run_leaves_no_memory_behind_that_grows_with_steps(hoisted: bool) -> None:
    def peak_of(steps: int) -> int:
        traced = program.trace("dpmpp_2m", schedules.sigmas("karras", steps, SD))
        return peak(tabled(traced, 2) if hoisted else looped(traced, Network(2)), steps)

    assert peak_of(400) <= peak_of(10) + 256
