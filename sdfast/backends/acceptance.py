"""The gate before the store: a compiled network is compared with the portable path, and timed
beside it, before anybody draws with it.

Refused is what is not finite, what is further from the portable path than its precision explains,
and what is slower.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np

from .._core import philox_normals
from ..devices.cuda import Cuda
from ..tensors import Tensor

SLOWER = 1.1  # times of two runs of the same differ by that much
MARGIN = 0.001  # seconds: of small networks that is the launch and the wait for its end
_RUNS, _ENOUGH = 6, 10.0  # of each, as many as that many seconds allow

Arrays = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of tensors by name."""


class Runnable(Protocol):
    """What is needed of an engine."""

    def bind(self, tensors: Mapping[str, Tensor], /) -> None: ...
    def run(self, stream: int) -> None: ...


@dataclass(frozen=True)
class Bound:
    """How far outputs may be from the portable path's: the largest difference over the largest
    value, the cosine, and for pixels the mean and the largest difference in levels of 255."""

    relative: float
    cosine: float
    mean_levels: float
    levels: float


# The products of float32 are in TF32 on a GPU, which has as many digits as float16.
BOUNDS = {
    "fp32": Bound(0.05, 0.9999, 0.5, 16.0),
    "fp16": Bound(0.05, 0.999, 1.0, 32.0),
    "bf16": Bound(0.25, 0.99, 4.0, 128.0),
    "int8": Bound(0.5, 0.9, 4.0, 128.0),
    "int8-fp16": Bound(0.5, 0.9, 4.0, 128.0),
    "fp8": Bound(0.5, 0.9, 4.0, 128.0),
}


@dataclass(frozen=True)
class Verdict:
    """What was measured, of the worst output: see Bound. Not finite numbers are None.

    seconds, portable_seconds: of a run
    refused: why, or None
    """

    seconds: float
    portable_seconds: float
    relative: float | None
    cosine: float | None
    levels: float | None
    refused: str | None

    def __str__(self) -> str:
        times = f"{1e3 * self.seconds:.2f} ms, the portable path {1e3 * self.portable_seconds:.2f}"
        if self.relative is None or self.cosine is None:
            return f"{times}; not finite"
        pixels = "" if self.levels is None else f", {self.levels:.0f} levels"
        return f"{times}; differs by {self.relative:.2g}, 1 − cosine {1 - self.cosine:.1g}{pixels}"


@dataclass(frozen=True)
class Place:
    """Where a network runs: on a GPU, or where that is None on the CPU."""

    gpu: Cuda | None

    def outputs(
        self, network: Runnable, inputs: Arrays, outputs: Shapes
    ) -> tuple[dict[str, Tensor], float]:
        """What the network makes of inputs on the host, also there, and the seconds of a run."""
        gpu = self.gpu
        written = {name: _filled_with_nan(shape, dtype) for name, (dtype, shape) in outputs.items()}
        if gpu is None:
            network.bind({**inputs, **written})
            return written, _seconds(lambda: network.run(0))
        bound = {name: gpu.empty(t.shape, t.dtype) for name, t in {**inputs, **written}.items()}
        for name, tensor in {**inputs, **written}.items():
            staged = gpu.pinned(tensor.shape, tensor.dtype)
            _copy(staged, tensor)
            gpu.upload(bound[name], staged)
            gpu.synchronize()
        network.bind(bound)

        def run() -> None:
            network.run(gpu.stream)
            gpu.synchronize()

        seconds = _seconds(run)
        for name, tensor in written.items():
            staged = gpu.pinned(tensor.shape, tensor.dtype)
            gpu.download(staged, bound[name])
            gpu.synchronize()
            _copy(tensor, staged)
        return written, seconds


def judge(
    candidate: tuple[Runnable, Place],
    portable: tuple[Runnable, Place],
    inputs: Arrays,
    outputs: Shapes,
    precision: str,
    *,
    timed: bool = True,
) -> Verdict:
    """The candidate's outputs and time beside those of the portable path.

    inputs: on the host; precision: one of networks.PRECISIONS, what the network computes in
    timed: whether it has to be as fast
    """
    wanted, portable_seconds = portable[1].outputs(portable[0], inputs, outputs)
    found, seconds = candidate[1].outputs(candidate[0], inputs, outputs)
    worst = _Gap(0.0, 1.0, None, None)
    refused = None
    for name, tensor in found.items():
        gap = _gap(tensor, wanted[name])
        refused = refused or _wrong(name, gap, BOUNDS[precision])
        worst = worst.or_worse(gap)
    if refused is None and timed and seconds > SLOWER * portable_seconds + MARGIN:
        refused = (
            f"it takes {1e3 * seconds:.2f} ms, the portable path {1e3 * portable_seconds:.2f} ms"
        )
    return Verdict(seconds, portable_seconds, *worst.finite(), refused)


@dataclass(frozen=True)
class _Gap:
    """The distance of two outputs; levels and mean levels of pixels alone."""

    relative: float
    cosine: float
    levels: float | None
    mean_levels: float | None

    def or_worse(self, other: _Gap) -> _Gap:
        return _Gap(
            float(np.maximum(self.relative, other.relative)),  # NaN stays
            float(np.minimum(self.cosine, other.cosine)),
            max((g.levels for g in (self, other) if g.levels is not None), default=None),
            None,
        )

    def finite(self) -> tuple[float | None, float | None, float | None]:
        whole = np.isfinite(self.relative) and np.isfinite(self.cosine)
        return (self.relative, self.cosine, self.levels) if whole else (None, None, None)


def _gap(found: Tensor, wanted: Tensor) -> _Gap:
    a, b = (np.asarray(tensor).astype(np.float64).ravel() for tensor in (found, wanted))
    difference = np.abs(a - b)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / lengths if lengths > 0 else float(np.array_equal(a, b))
    largest = max(float(np.abs(b).max()), 1e-12)
    pixels = found.dtype == "u8"
    return _Gap(
        float(difference.max()) / largest,
        cosine,
        float(difference.max()) if pixels else None,
        float(difference.mean()) if pixels else None,
    )


def _wrong(name: str, gap: _Gap, bound: Bound) -> str | None:
    """What is wrong with an output, None where nothing is."""
    if not (np.isfinite(gap.relative) and np.isfinite(gap.cosine)):
        return f"{name} is not finite"
    if gap.levels is not None and gap.mean_levels is not None:
        if gap.levels <= bound.levels and gap.mean_levels <= bound.mean_levels:
            return None
        return (
            f"{name} differs by {gap.levels:.0f} levels, {gap.mean_levels:.2f} in the mean; allowed"
            f" are {bound.levels:g} and {bound.mean_levels:g}"
        )
    if gap.relative <= bound.relative and gap.cosine >= bound.cosine:
        return None
    return (
        f"{name} differs by {gap.relative:.3g} of its largest value, cosine {gap.cosine:.5f}; "
        f"allowed are {bound.relative:g} and {bound.cosine:g}"
    )


def examples(inputs: Shapes, words: int, seed: int = 0) -> dict[str, Tensor]:
    """Values like those that a run brings, for each input, on the host. words: of the vocabulary"""
    return {
        name: _example(name, dtype, shape, words, random.Random(f"{seed} {name}"))
        for name, (dtype, shape) in inputs.items()
    }


_SPREAD = {"timestep": 999.0, "guidance": 8.0, "sizes": 1024.0}  # from 0 on; others are normal


def _example(
    name: str, dtype: str, shape: tuple[int, ...], words: int, draws: random.Random
) -> Tensor:
    tensor = Tensor.empty(shape, dtype)
    if dtype == "f32" and name not in _SPREAD:
        philox_normals(tensor, [draws.getrandbits(63) for _ in range(shape[0])], 0)
    elif dtype == "f32":
        _fill(tensor, "f", lambda: _SPREAD[name] * draws.random())
    elif dtype == "i32":
        _fill(tensor, "i", lambda: draws.randrange(words))
    else:
        memoryview(tensor).cast("B")[:] = draws.randbytes(tensor.nbytes)
    return tensor


def _fill(tensor: Tensor, kind: str, draw: Callable[[], float]) -> None:
    numbers = memoryview(tensor).cast("B").cast(kind)  # type: ignore[call-overload]
    for k in range(len(numbers)):
        numbers[k] = draw()


def _filled_with_nan(shape: tuple[int, ...], dtype: str) -> Tensor:
    """What is not written is seen."""
    tensor = Tensor.zeros(shape, dtype)
    if dtype in ("f32", "f16"):
        np.asarray(tensor).fill(np.nan)
    return tensor


def _copy(target: Tensor, source: Tensor) -> None:
    memoryview(target).cast("B")[:] = memoryview(source).cast("B")


def _seconds(run: Callable[[], None]) -> float:
    """Of a run: the least of several, since the first pays for what is made once."""
    times = [_once(run)]
    while len(times) < _RUNS and sum(times) < _ENOUGH:
        times.append(_once(run))
    return min(times)


def _once(run: Callable[[], None]) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began
