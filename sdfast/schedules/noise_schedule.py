"""The noise levels that a network was trained on, from its betas."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul

from ..errors import UnknownSchedule, nearest

# ᾱ_{T−1} under zero terminal SNR is 0, where σ would be infinite; this is the floor that ComfyUI
# puts in its place: σ_max = 4518.76.
TERMINAL_KEPT = 4.8973451890853435e-8


@dataclass(frozen=True)
class NoiseSchedule:
    """The training noise levels `sigmas` (Σ, ascending) and their logarithms."""

    sigmas: tuple[float, ...]
    log_sigmas: tuple[float, ...]

    @classmethod
    def from_betas(
        cls, name: str, start: float, end: float, count: int, *, zero_terminal_snr: bool = False
    ) -> NoiseSchedule:
        """From β_k as diffusers names them: linear, scaled_linear or squaredcos_cap_v2.

        scaled_linear: β_k = (√start + (√end − √start) k / (count − 1))², that of SD 1.x, 2.x, XL.
        start, end: the first and last β, between 0 and 1; squaredcos_cap_v2 has its own
        count: T, the number of levels, at least 2
        zero_terminal_snr: rescaled so that the last level holds next to no signal
            (arXiv:2305.08891), for models of v-prediction that were trained so

        Raises UnknownSchedule, or ValueError for betas that leave no signal or cannot be rescaled.
        """
        if name not in BETAS:
            raise UnknownSchedule(
                f"beta schedule {name!r} is unknown{nearest(name, BETAS)}; known: "
                + ", ".join(BETAS)
            )
        if count < 2:
            raise ValueError(f"a noise schedule has at least 2 levels; {count} were asked for")
        own = name == "squaredcos_cap_v2" or 0 < start <= end < 1
        kept = (
            []
            if not own
            else list(
                accumulate((1 - BETAS[name](start, end, k, count) for k in range(count)), mul)
            )
        )
        if not own or not _falls(kept):
            raise ValueError(
                f"betas {name} from {start} to {end} over {count} levels are no noise schedule: "
                "each must lie between 0 and 1, the first not above the last, and some signal must "
                "be left at the last level"
            )
        if zero_terminal_snr and not _falls(kept := _zero_terminal(kept)):
            raise ValueError(
                f"betas {name} from {start} to {end} cannot be rescaled to zero terminal SNR: the "
                "last level but one would hold less signal than the trace that the last one keeps"
            )
        sigmas = tuple(math.sqrt((1 - a) / a) for a in kept)
        return cls(sigmas, tuple(map(math.log, sigmas)))

    @property
    def sigma_min(self) -> float:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        return self.sigmas[-1]

    def sigma(self, t: float) -> float:
        """σ at a fractional timestep, log-linear between levels; t is clamped to 0…T − 1."""
        return math.exp(interpolated(self.log_sigmas, t))

    def timestep(self, sigma: float) -> float:
        """The fractional timestep of σ, log-linear between levels, 0…T − 1: the inverse of
        `sigma`, as k-diffusion, A1111 and diffusers' sigma-based schedulers have it."""
        if sigma <= self.sigma_min:
            return 0.0
        log = math.log(sigma)
        low = min(bisect_right(self.log_sigmas, log) - 1, len(self.sigmas) - 2)
        a, b = self.log_sigmas[low], self.log_sigmas[low + 1]
        return low + min(max((log - a) / (b - a), 0.0), 1.0)


def interpolated(values: Sequence[float], at: float) -> float:
    """The values, two or more, linearly interpolated at a fractional index, which is clamped."""
    at = min(max(at, 0.0), len(values) - 1.0)
    low = min(int(at), len(values) - 2)
    w = at - low
    return (1 - w) * values[low] + w * values[low + 1]


def spaced(start: float, end: float, count: int) -> list[float]:
    """`count` equally spaced points from start to end, both included; one point is the start."""
    if count == 1:
        return [start]
    return [start + (end - start) * k / (count - 1) for k in range(count)]


def _falls(kept: Sequence[float]) -> bool:
    """Whether ᾱ falls from level to level, within 1…0, and every σ is finite."""
    return all(a > b > sys.float_info.min for a, b in pairwise([1.0, *kept]))


def _zero_terminal(kept: Sequence[float]) -> list[float]:
    # arXiv:2305.08891, algorithm 1: √ᾱ is shifted to end at 0 and scaled to start where it did.
    roots = [math.sqrt(a) for a in kept]
    first, last = roots[0], roots[-1]
    return [*(((r - last) * first / (first - last)) ** 2 for r in roots[:-1]), TERMINAL_KEPT]


def _linear(start: float, end: float, k: int, count: int) -> float:
    return start + (end - start) * k / (count - 1)


def _scaled_linear(start: float, end: float, k: int, count: int) -> float:
    return _linear(math.sqrt(start), math.sqrt(end), k, count) ** 2


def _squared_cosine(start: float, end: float, k: int, count: int) -> float:
    # arXiv:2102.09672, eq. 17; start and end have no part in it.
    def kept(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return min(1 - kept((k + 1) / count) / kept(k / count), 0.999)


BETAS: dict[str, Callable[[float, float, int, int], float]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squared_cosine,
}
