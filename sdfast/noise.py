"""Seeds become noise: for each image the normal that a run starts from, and the draws that follow.

A draw depends on (seed, draw number, element) alone, never on the batch or the thread count.

rng, where the start and the gaussian draws come from:
    philox: the values of `torch.randn(..., device="cuda")`
    torch: those of `torch.randn` with a CPU generator, each image from a generator of its own
The other kinds need draws at any place of a stream, and a sequential generator like torch's has
none: under either rng they are functions of philox counters, apart from the gaussian draws' own.

kind, the law of the draws, each of mean 0 (σ matters to brownian alone):
    gaussian: unit normal
    uniform: in ±1.73, variance 0.9976
    brownian: the increments of one path over σ, divided by the root of the interval
    pyramid: normal of variance 1.1904
    highres-pyramid: uniform, and a normal whose variance differs from pixel to pixel; variance 1
    perlin: normal, and gradient noise with one lattice cell a pixel, by which diagonal neighbours
        correlate with −1/12; variance 1
    laplacian: a quarter normal and Laplace's law; variance 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import sqrt

from . import _core
from .errors import InvalidRequest
from .ranges import NOISES
from .tensors import Tensor

Start = Callable[[Tensor], None]
"""start(out): writes draw 0 of the rng, unit normal, into f32 [B, C, h, w], an image a seed."""

Draw = Callable[[Tensor, float, float], None]
"""draw(out, sigma, sigma_next): writes the next draw of the stream, made for the interval from
sigma to sigma_next, into f32 [B, C, h, w], an image a seed. Every out has one shape.

A brownian stream takes levels 0 and 2⁻¹⁶ … 2¹⁶; InvalidRequest for others."""


def streams(kind: str, rng: str, seeds: Sequence[int]) -> tuple[Start, Draw]:
    """The start of a run and its further draws, one image for each seed, 0…2⁶⁴ − 1.

    kind: one of KINDS; rng: one of RNGS
    The gaussian draws go on from the start, which is called once and first: they are draw 1, 2, ….
    Raises InvalidRequest.
    """
    if rng not in _NORMALS:
        raise InvalidRequest(f"rng is {rng!r}; it must be one of {', '.join(RNGS)}")
    if kind not in KINDS:
        raise InvalidRequest(f"noise kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    normals = _NORMALS[rng](seeds)
    if kind == "gaussian":
        return normals, lambda out, sigma, sigma_next: normals(out)
    return normals, _brownian(seeds) if kind == "brownian" else _counted(_FILLS[kind], seeds)


def _philox(seeds: Sequence[int]) -> Start:
    numbers = count()
    return lambda out: _core.philox_normals(out, seeds, next(numbers))


def _torch(seeds: Sequence[int]) -> Start:
    generators = [_core.TorchGenerator(seed) for seed in seeds]

    def normals(out: Tensor) -> None:
        for image, generator in enumerate(generators):
            generator.normals(out, image)

    return normals


def _counted(fill: Callable[[Tensor, Sequence[int], int], None], seeds: Sequence[int]) -> Draw:
    numbers = count()
    return lambda out, sigma, sigma_next: fill(out, seeds, next(numbers))


def _brownian(seeds: Sequence[int]) -> Draw:
    """n(σ, σ′) = (W(σ′) − W(σ)) / √|σ − σ′|, W each seed's path (arXiv:2001.01328): draws of nested
    and neighbouring intervals are parts of one path, in any order and any stream."""
    paths: dict[float, Tensor] = {}  # W at the last two levels: steps share their ends

    def path(sigma: float, like: Tensor) -> Tensor:
        values = paths.pop(sigma, None)
        if values is None:
            full = len(paths) == 2
            values = paths.pop(next(iter(paths))) if full else Tensor.empty(like.shape, "f32")
            _core.brownian(values, seeds, sigma)
        paths[sigma] = values
        return values

    def draw(out: Tensor, sigma: float, sigma_next: float) -> None:
        for level in (sigma, sigma_next):
            if level != 0 and not 2**-16 <= level <= 2**16:
                raise InvalidRequest(
                    f"brownian noise is asked for at noise level {level:g}; it reaches from 2⁻¹⁶ to"
                    " 2¹⁶: choose other sigmas or another noise_kind"
                )
        width = abs(sigma_next - sigma)
        scale = 1 / sqrt(width) if width > 0 else 0.0  # no time, no noise
        ends = [path(sigma, out), path(sigma_next, out)]
        _core.combine(out, [-scale, scale], ends)

    return draw


_NORMALS = {"philox": _philox, "torch": _torch}
_FILLS = {
    "uniform": _core.uniform,
    "pyramid": _core.pyramid,
    "highres-pyramid": _core.highres_pyramid,
    "perlin": _core.perlin,
    "laplacian": _core.laplacian,
}
RNGS = tuple(_NORMALS)
KINDS = NOISES
