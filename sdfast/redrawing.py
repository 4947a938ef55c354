"""Programs that start from a picture, or redraw it in part.

A run from a picture starts at the picture's latents y under noise, x = y + σ n, in place of noise
alone. One that redraws a part of it, where the mask m is 1, keeps the rest on the straight way from
the run's first x to y:

    x ← m x + (1 − m) (y + σ/σ₀ (x₀ − y))    before each evaluation
    D ← m D + (1 − m) y                       after it

which is y + σ n for an x₀ of y + σ₀ n: what ComfyUI does for every sampler, and what diffusers'
inpainting does after each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .program import Blend, Combine, Eval, Instruction, Program
from .tensors import Tensor


@dataclass(frozen=True)
class Redrawn:
    """The picture that a run starts from, or redraws in part.

    latents: f32 [B, C, h, w]
    mask: f32 [B, 1, h, w], 1 where it is redrawn and 0 where it is kept; None for all of it
    fresh: whether the run starts from noise alone all the same
    beside: f32 [B, E, h, w], what a network for inpainting reads beside x, in E more channels
    """

    latents: Tensor
    mask: Tensor | None = None
    fresh: bool = False
    beside: Tensor | None = None


def lay_beside(latent: Tensor, beside: Tensor) -> None:
    """Fills the channels of a network's input [G·B, C + E, h, w] after the first C with those of
    beside [B, E, h, w]."""
    target, source = (memoryview(tensor).cast("B") for tensor in (latent, beside))
    row, part = latent.nbytes // latent.shape[0], beside.nbytes // beside.shape[0]
    for k in range(latent.shape[0]):
        start = k % beside.shape[0] * part
        target[(k + 1) * row - part : (k + 1) * row] = source[start : start + part]


def beginning(sigma: float, picture: int | None = None) -> list[tuple[float, int]]:
    """The first x as a combination of slot 0, the run's first draw, and the slot of the picture's
    latents; without one as a training latent of unit deviation under noise σ."""
    if picture is None:
        return [((sigma * sigma + 1) ** 0.5, 0)]
    return [(sigma, 0), (1.0, picture)]


def masked(program: Program) -> Program:
    """The program with what lies outside of the mask kept at each evaluation, and at its end."""
    if program.picture is not None:
        raise ValueError("the program redraws a part already")
    picture, first, way = (program.slots + k for k in range(3))

    def kept(sigma: float) -> Combine:
        passed = sigma / program.sigmas[0]
        return Combine(way, ((passed, first), (1 - passed, picture)))

    def instructions() -> Iterator[Instruction]:
        yield Combine(first, ((1.0, 0),))
        for i in program.instructions:
            if isinstance(i, Eval):
                yield kept(i.sigma)
                yield Blend(way, i.x, way)
                yield replace(i, x=way)
                yield Blend(i.out, i.out, picture)
            else:
                yield i
        yield kept(program.sigmas[-1])
        yield Blend(program.result, program.result, way)

    return replace(
        program,
        instructions=tuple(instructions()),
        slots=program.slots + 3,
        picture=picture,
    )
