"""Runs that start from a picture or redraw a part of it: the program against its sampler, whose
model keeps what lies outside of the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdfast import _core, program, samplers, schedules
from sdfast.devices.cpu import Denoiser, HostRun, Loop, start
from sdfast.guidance import Guidance
from sdfast.program import Program
from sdfast.redrawing import Redrawn, beginning, lay_beside, masked
from sdfast.schedules import NoiseSchedule
from sdfast.tensors import Tensor

SD = NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)
SHAPE = (2, 4, 6, 8)
SIGMAS = schedules.sigmas("karras", 6, SD)
STATIC = [name for name in samplers.names() if samplers.get(name).static]
VALUES = np.random.default_rng(5)
PICTURE = VALUES.normal(size=SHAPE)
MASK = np.stack([VALUES.uniform(size=(1, *SHAPE[2:])).round(), np.full((1, *SHAPE[2:]), 0.25)])
FIRST = VALUES.normal(size=SHAPE)


def tensor(array: NDArray[Any]) -> Tensor:
    made = Tensor.empty(array.shape, "f32")
    np.asarray(made)[:] = array
    return made


def first(out: Tensor) -> None:
    np.asarray(out)[:] = FIRST


def drawn(seed: int) -> Any:
    generator = np.random.default_rng(seed)
    return lambda *_: generator.normal(size=SHAPE)


class Unet:
    """noise = 0.4 · latent + 0.5 · tanh(latent)."""

    def bind(self, tensors: Any, /) -> None:
        self._latent, self._noise = (np.asarray(tensors[n]) for n in ("latent", "noise"))

    def run(self) -> None:
        self._noise[:] = 0.4 * self._latent + 0.5 * np.tanh(self._latent)


def denoiser() -> Denoiser:
    shapes = {"latent": SHAPE, "timestep": SHAPE[:1], "noise": SHAPE}
    tensors = {name: Tensor.zeros(shape, "f32") for name, shape in shapes.items()}
    return Denoiser(Unet(), tensors, SHAPE[0], SD, "epsilon")


def denoised(x: NDArray[Any], sigma: float) -> NDArray[Any]:
    latent = x / np.sqrt(sigma**2 + 1)
    return x - sigma * (0.4 * latent + 0.5 * np.tanh(latent))


def by_the_sampler(name: str, fresh: bool, sigmas: tuple[float, ...]) -> NDArray[np.float64]:
    begin = np.sqrt(sigmas[0] ** 2 + 1) * FIRST if fresh else PICTURE + sigmas[0] * FIRST

    def kept(x: NDArray[Any], sigma: float) -> NDArray[Any]:
        return MASK * x + (1 - MASK) * (PICTURE + sigma / sigmas[0] * (begin - PICTURE))

    def model(x: Any, sigma: float) -> Any:
        return kept(denoised(kept(x, sigma), sigma), 0)

    end = samplers.get(name).sample(model, begin, sigmas, drawn(7))
    return kept(end, sigmas[-1])


def by_the_program(
    traced: Program | None, name: str, redrawn: Redrawn | None, sigmas: tuple[float, ...]
) -> NDArray[np.float32]:
    run = (
        HostRun(samplers.get(name), sigmas, {}, denoiser(), SHAPE)
        if traced is None
        else Loop(traced, denoiser(), SHAPE)
    )
    noise = drawn(7)

    def draw(out: Tensor, *levels: float) -> None:
        np.asarray(out)[:] = noise(*levels)

    start(run.x, sigmas[0], first, redrawn)
    run.run(Guidance(1.0), draw, redrawn=redrawn)
    return np.array(run.result)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("part", ["whole", "middle"])
@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_keeps_what_is_outside_of_the_mask(name: str, part: str, fresh: bool) -> None:
    sigmas = SIGMAS if part == "whole" else SIGMAS[1:-1]
    traced = masked(program.trace(name, sigmas)) if name in STATIC else None
    redrawn = Redrawn(tensor(PICTURE), tensor(MASK), fresh)
    got = by_the_program(traced, name, redrawn, sigmas)
    expected = by_the_sampler(name, fresh, sigmas)
    bound = 2e-2 if name == "ttm" else 2e-4  # it divides a difference of float32 by a small step
    assert np.abs(got - expected).max() <= bound * np.abs(expected).max()
    if part == "whole":
        outside = np.broadcast_to(MASK == 0, SHAPE)
        np.testing.assert_array_equal(got[outside], PICTURE.astype(np.float32)[outside])


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "dpmpp_sde"])
def test_with_everything_inside_nothing_is_changed(name: str) -> None:
    traced = program.trace(name, SIGMAS)
    everywhere = Redrawn(tensor(PICTURE), tensor(np.ones_like(MASK)))
    plain = by_the_program(traced, name, Redrawn(tensor(PICTURE)), SIGMAS)
    np.testing.assert_array_equal(by_the_program(masked(traced), name, everywhere, SIGMAS), plain)


def test_a_run_begins_as_a_training_latent_or_at_the_picture() -> None:
    x = Tensor.empty(SHAPE, "f32")
    start(x, 3.0, first, Redrawn(tensor(PICTURE), fresh=True))
    np.testing.assert_allclose(np.asarray(x), np.sqrt(10) * FIRST, rtol=1e-6)
    start(x, 3.0, first, Redrawn(tensor(PICTURE)))
    np.testing.assert_allclose(np.asarray(x), PICTURE + 3 * FIRST, rtol=1e-5, atol=1e-5)
    assert beginning(0.0) == [(1.0, 0)]


def test_a_program_that_redraws_a_part_reads_back_and_prints() -> None:
    traced = masked(program.trace("heun", SIGMAS))
    assert Program.from_json(traced.to_json()) == traced
    assert "m·x" in str(traced)
    with pytest.raises(ValueError, match="already"):
        masked(traced)
    with pytest.raises(ValueError, match="give it, with its mask"):
        Loop(traced, denoiser(), SHAPE).run(Guidance(1.0), lambda *_: None)


def test_blending_is_exact_at_both_ends_and_refuses_other_shapes() -> None:
    out, x, kept = (tensor(VALUES.normal(size=SHAPE)) for _ in range(3))
    ends = tensor(MASK[:1].repeat(2, 0))
    expected = np.where(np.asarray(ends) == 1, np.asarray(x), np.asarray(kept))
    _core.blend(out, x, kept, ends)
    np.testing.assert_array_equal(np.asarray(out), expected)
    _core.blend(kept, x, kept, ends)  # in place
    np.testing.assert_array_equal(np.asarray(kept), expected)
    with pytest.raises(ValueError, match=r"\[B, 1, h, w\]"):
        _core.blend(out, x, kept, tensor(MASK[:1]))
    with pytest.raises(ValueError, match="one shape"):
        _core.blend(out, x, tensor(PICTURE[:1]), ends)


def test_what_lies_beside_x_stays_while_x_is_written() -> None:
    latent, beside = Tensor.zeros((4, 6, 6, 8), "f32"), VALUES.normal(size=(2, 2, 6, 8))
    lay_beside(latent, tensor(beside))
    x, times = tensor(PICTURE), Tensor.empty((4,), "f32")
    _core.prepare(latent, times, x, 1.0, 5.0)
    got = np.asarray(latent)
    np.testing.assert_allclose(got[:, :4], np.concatenate([PICTURE] * 2) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_array_equal(got[:, 4:], np.concatenate([beside] * 2).astype(np.float32))
    _core.prepare(latent.rows(2, 4), times.rows(2, 4), x, 0.0, 5.0)
    np.testing.assert_array_equal(got[2:, :4], PICTURE.astype(np.float32))
