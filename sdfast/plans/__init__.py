"""Plans: what requests share that differ in words, seeds and guidance alone.

On the CPU a plan is of one program: its latents, its loop, all tensors of its networks. On a GPU
it is of one shape, and programs are data that it is given (devices/runs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

from PIL import Image

from .. import caching, program
from ..conditioning import Conditions
from ..devices.calls import Running
from ..devices.cpu import Progress
from ..errors import InvalidRequest
from ..guidance import Guidance
from ..opened import Opened
from ..program import Program
from ..redrawing import Redrawn, masked
from ..request import Resolved
from ..tensors import Tensor

Pictures = Callable[[], Running[list[Image.Image]]]
"""Decodes what was denoised, an image a seed."""

_K = TypeVar("_K")
_V = TypeVar("_V")
KEPT = 8  # plans, programs: the oldest makes room


@dataclass(frozen=True)
class Drawn:
    """What a run brought.

    pictures: decodes it
    latents: f32 [B, C, h, w], of the host; to be called before the plan is given back
    """

    pictures: Pictures
    latents: Callable[[], Tensor]


class Plan(Protocol):
    """See the module."""

    def condition(self, conditions: Conditions) -> None:
        """Takes what a request says to the networks."""

    def redraw(self, redrawn: Redrawn | None) -> None:
        """Takes the picture that the next run starts from, or redraws in part, a row for each
        image; None for noise alone."""

    def denoise(
        self,
        request: Resolved,
        guidance: Guidance,
        seeds: Sequence[int],
        progress: Progress | None,
    ) -> Running[Drawn]:
        """Runs the request's sampler for these seeds, but for the calls that it yields."""


class Plans(Protocol):
    """The plans of a pipeline, made when they are asked for."""

    @property
    def batch(self) -> int:
        """Images that share a call of the network at most."""

    @property
    def form(self) -> str:
        """How the last run was enqueued: "loop" by the host, or one of devices.runs.FORMS."""

    def lend(
        self, request: Resolved, guidance: Guidance, batch: int, conditions: Conditions
    ) -> AbstractContextManager[Plan]:
        """A plan for that request, of `batch` images, and for conditions as these, that nobody
        else has until it is given back."""

    def close(self) -> None:
        """Forgets them."""


def traced(request: Resolved) -> Program:
    """The request's program. Raises InvalidRequest for one that float32 cannot follow."""
    parameters = tuple(sorted(request.sampler_parameters.items()))
    found = _program(request.sampler, request.sigmas, parameters)
    if not found.largest_coefficient < 1e6:  # float32 has nothing left after the seventh digit
        raise InvalidRequest(
            f"{request.sampler} cannot follow noise levels as uneven as these: choose another "
            "schedule, other sigmas or another sampler"
        )
    return caching.cached(masked(found) if request.blended else found, request.cache)


@lru_cache(maxsize=32)  # requests are alike more often than plans are idle
def _program(
    sampler: str, sigmas: tuple[float, ...], parameters: tuple[tuple[str, Any], ...]
) -> Program:
    return program.trace(sampler, sigmas, **dict(parameters))


def told_apart(request: Resolved) -> tuple[object, ...]:
    """What programs differ in."""
    parameters = tuple(sorted(request.sampler_parameters.items()))
    controls = tuple(one.bundle for one in request.controls)
    how = request.cache, request.blended, request.from_picture, controls
    return request.sampler, parameters, request.sigmas, *how


class Idle(Generic[_K, _V]):
    """What nobody uses now, KEPT at most: the one that was used longest ago makes room."""

    def __init__(self) -> None:
        self._idle: list[tuple[_K, _V]] = []

    def __len__(self) -> int:
        return len(self._idle)

    @contextmanager
    def lend(self, key: _K, make: Callable[[], _V]) -> Iterator[_V]:
        """One of that key, which is no longer idle until the block ends; made where there is
        none."""
        places = [k for k, (own, _) in enumerate(self._idle) if own == key]
        value = self._idle.pop(places[-1])[1] if places else make()
        try:
            yield value
        finally:
            self._idle.append((key, value))
            del self._idle[:-KEPT]

    def clear(self) -> None:
        self._idle.clear()


def kept(kept: dict[_K, _V], key: _K, make: Callable[[], _V]) -> _V:
    """The value of that key, made where there is none; the oldest of KEPT makes room for it."""
    if key not in kept:
        if len(kept) >= KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = make()
    return kept[key]


def shapes(
    opened: Opened, *networks: str, rows: int, tokens: int = 0, sides: tuple[int, ...] = ()
) -> dict[str, tuple[list[int], str]]:
    """Shape and type of the tensors of those of the networks that the bundle has, but for what
    ControlNets and image prompts give: contexts of `tokens`, latents of `sides`."""
    latents = ("latent", "noise", "features")
    return {
        name: (spec.sides(rows, *(sides if name in latents else (tokens,))), spec.dtype)
        for name, spec in opened.tensors(*networks).items()
        if spec.shape.count(None) <= (3 if name in latents else 2)
    }


def copied(tensor: Tensor) -> Tensor:
    copied = Tensor.empty(tensor.shape, tensor.dtype)
    memoryview(copied).cast("B")[:] = memoryview(tensor).cast("B")
    return copied
