"""Seeds become noise: a stream of unit-normal draws for each image.

A draw depends on (seed, draw number, element) alone, never on the batch or the thread count.
"philox" gives the values of `torch.randn(..., device="cuda")`, "torch" those of `torch.randn` with
a CPU generator, each for one image of [1, 4, h, w] after the other from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from ._core import TorchGenerator, philox_normals
from .tensors import Tensor

Draw = Callable[[Tensor], None]
"""Writes the next draw into f32 [B, 4, h, w], one image for each seed."""


def philox(seeds: Sequence[int]) -> Draw:
    """The stream of counter-based normals (cuRAND's Philox4x32-10)."""
    numbers = count()

    def draw(out: Tensor) -> None:
        philox_normals(out, seeds, next(numbers))

    return draw


def torch(seeds: Sequence[int]) -> Draw:
    """The stream of Mersenne-twister normals, as diffusers' examples and ComfyUI draw them."""
    generators = [TorchGenerator(seed) for seed in seeds]

    def draw(out: Tensor) -> None:
        for image, generator in enumerate(generators):
            generator.normals(out, image)

    return draw


STREAMS: dict[str, Callable[[Sequence[int]], Draw]] = {"philox": philox, "torch": torch}
