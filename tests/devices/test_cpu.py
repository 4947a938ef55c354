"""The loop on the CPU against the sampler itself, with a small linear network in the U-Net's
place: what is tested is everything around it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from sdfast import noise, program, samplers, schedules
from sdfast.devices.cpu import Loop
from sdfast.schedules import NoiseSchedule
from sdfast.tensors import Tensor

SD = NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)
SHAPE = (2, 4, 8, 6)


class Network:
    """noise = latent · (0.5 + row / 10) + timestep / 1000, on bound tensors."""

    def __init__(self, rows: int) -> None:
        shape = (rows * SHAPE[0], *SHAPE[1:])
        self.tensors = {
            "latent": Tensor.empty(shape, "f32"),
            "timestep": Tensor.empty(shape[:1], "f32"),
            "noise": Tensor.empty(shape, "f32"),
        }
        arrays = {name: np.asarray(tensor) for name, tensor in self.tensors.items()}
        self._latent, self._timestep, self._noise = arrays.values()
        self._factor = (0.5 + np.arange(shape[0], dtype=np.float32) / 10)[:, None, None, None]

    def __call__(self) -> None:
        np.multiply(self._latent, self._factor, out=self._noise)
        self._noise += self._timestep[:, None, None, None] / 1000


def reference(
    name: str, sigmas: tuple[float, ...], rows: int, guidance: float, seed: int
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
        mixed = halves[0] + guidance * (halves[-1] - halves[0]) if rows == 2 else halves[0]
        return x - sigma * mixed

    x = drawn() * np.sqrt(sigmas[0] ** 2 + 1)
    return samplers.get(name).sample(denoised, x, sigmas, drawn)


STATIC = [name for name in samplers.names() if samplers.get(name).static]


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize(("rows", "guidance"), [(1, 1.0), (2, 1.0), (2, 4.5)])
def test_the_loop_is_the_sampler(name: str, rows: int, guidance: float) -> None:
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


def test_progress_counts_evaluations_and_may_end_the_run() -> None:
    sigmas = schedules.sigmas("karras", 5, SD)
    network = Network(1)
    loop = Loop(program.trace("euler", sigmas), network, network.tensors, SHAPE, SD, "epsilon")
    draw = noise.philox([0, 1])
    seen: list[tuple[int, int]] = []
    loop.start(sigmas[0], draw)
    loop.run(1.0, draw, lambda done, of: seen.append((done, of)))
    assert seen == [(k, 5) for k in range(1, 6)]

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(1.0, draw, stop)


def test_a_run_leaves_no_memory_behind_that_grows_with_steps() -> None:
    def peak(steps: int) -> int:
        sigmas = schedules.sigmas("karras", steps, SD)
        traced = program.trace("dpmpp_2m", sigmas)
        tensors = Network(2).tensors
        loop = Loop(traced, lambda: None, tensors, SHAPE, SD, "epsilon")
        draw = noise.philox([0, 1])
        loop.start(sigmas[0], draw)
        loop.run(4.0, draw)
        tracemalloc.start()
        loop.run(4.0, draw)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak(400) <= peak(10) + 256
