"""The loop on the CPU against the sampler itself, with a small linear network in the U-Net's
place: what is tested is everything around it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest

from sdfast import _core, noise, program, samplers, schedules
from sdfast.devices.cpu import Loop
from sdfast.guidance import Guidance
from sdfast.schedules import NoiseSchedule
from sdfast.tensors import Tensor

SD = NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)
SHAPE = (2, 4, 8, 6)


class Network:
    """noise = latent · context + timestep / 1000, on bound tensors; context is 0.5 + row / 10."""

    def __init__(self, rows: int) -> None:
        shape = (rows * SHAPE[0], *SHAPE[1:])
        self.tensors = {
            "latent": Tensor.empty(shape, "f32"),
            "timestep": Tensor.empty(shape[:1], "f32"),
            "context": Tensor.empty(shape[:1], "f32"),
            "noise": Tensor.empty(shape, "f32"),
        }
        np.asarray(self.tensors["context"])[:] = 0.5 + np.arange(shape[0]) / 10
        self.bindings = 0

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        arrays = [np.asarray(tensors[name]) for name in self.tensors]
        self._latent, self._timestep, self._context, self._noise = arrays
        self.batch = len(self._latent)
        self.bindings += 1

    def run(self) -> None:
        np.multiply(self._latent, self._context[:, None, None, None], out=self._noise)
        self._noise += self._timestep[:, None, None, None] / 1000


def reference(
    name: str, sigmas: tuple[float, ...], rows: int, guidance: Guidance, seed: int
) -> object:
    draw = noise.philox([seed, seed + 1])
    out = Tensor.empty(SHAPE, "f32")

    def drawn(*_: float) -> np.ndarray:
        draw(out)
        return np.array(out, dtype=np.float64)

    def denoised(x: np.ndarray, sigma: float) -> np.ndarray:
        scaled, t = x / np.sqrt(sigma**2 + 1), SD.timestep(sigma) / 1000
        factor = 0.5 + np.arange(rows * SHAPE[0])[:, None, None, None] / 10
        halves = np.split(np.concatenate([scaled] * rows) * factor + t, rows)
        low, high = guidance.interval or (0, np.inf)
        scale = guidance.scale if low < sigma <= high else 1
        return x - sigma * (halves[0] + scale * (halves[-1] - halves[0]))

    x = drawn() * np.sqrt(sigmas[0] ** 2 + 1)
    return samplers.get(name).sample(denoised, x, sigmas, drawn)


STATIC = [name for name in samplers.names() if samplers.get(name).static]


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
    network = Network(rows)
    loop = Loop(program.trace(name, sigmas), network, network.tensors, SHAPE, SD, "epsilon")
    for seed in (3, 11):  # the second run finds the first one's leavings
        draw = noise.philox([seed, seed + 1])
        loop.start(sigmas[0], draw)
        loop.run(guidance, draw)
        expected = np.asarray(reference(name, sigmas, rows, guidance, seed))
        # float32 over 12 steps: 1e-5 of the largest latent met on the way.
        assert np.abs(np.asarray(loop.result) - expected).max() <= 1e-5 * sigmas[0] * 10


def test_only_steps_inside_the_interval_evaluate_both_halves() -> None:
    sigmas = schedules.sigmas("karras", 12, SD)
    network = Network(2)
    loop = Loop(program.trace("euler", sigmas), network, network.tensors, SHAPE, SD, "epsilon")
    draw = noise.philox([0, 1])
    loop.start(sigmas[0], draw)
    # A border that is a step's own noise level: guidance acts at the upper one, not at the lower.
    guidance, batches = Guidance(4.0, interval=(sigmas[7], sigmas[3])), list[int]()
    loop.run(guidance, draw, lambda done, of: batches.append(network.batch))
    assert batches == [2] * 3 + [4] * 4 + [2] * 5
    assert network.bindings == 3


def test_an_interval_that_holds_every_step_changes_no_bit() -> None:
    sigmas = schedules.sigmas("karras", 8, SD)
    network = Network(2)
    loop = Loop(program.trace("dpmpp_2m", sigmas), network, network.tensors, SHAPE, SD, "epsilon")
    found = []
    for guidance in (Guidance(4.0), Guidance(4.0, interval=(0.0, 100.0))):
        draw = noise.philox([0, 1])
        loop.start(sigmas[0], draw)
        loop.run(guidance, draw)
        found.append(np.array(loop.result))
    assert (found[0] == found[1]).all()


def test_rescale_reaches_the_latents() -> None:
    network = Network(2)
    sigmas = (5.0, 0.0)  # one Euler step to 0: the result is D itself
    loop = Loop(program.trace("euler", sigmas), network, network.tensors, SHAPE, SD, "epsilon")
    draw = noise.philox([0, 1])
    loop.start(sigmas[0], draw)
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
    loop = Loop(program.trace("euler", sigmas), network, network.tensors, SHAPE, SD, "epsilon")
    draw = noise.philox([0, 1])
    seen: list[tuple[int, int]] = []
    loop.start(sigmas[0], draw)
    loop.run(Guidance(1.0), draw, lambda done, of: seen.append((done, of)))
    assert seen == [(k, 5) for k in range(1, 6)]

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(Guidance(1.0), draw, stop)


def test_a_run_leaves_no_memory_behind_that_grows_with_steps() -> None:
    def peak(steps: int) -> int:
        sigmas = schedules.sigmas("karras", steps, SD)
        traced = program.trace("dpmpp_2m", sigmas)
        network = Network(2)
        loop = Loop(traced, network, network.tensors, SHAPE, SD, "epsilon")
        draw = noise.philox([0, 1])
        loop.start(sigmas[0], draw)
        loop.run(Guidance(4.0), draw)
        tracemalloc.start()
        loop.run(Guidance(4.0), draw)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak(400) <= peak(10) + 256
