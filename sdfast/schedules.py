"""Sigma schedules: which noise levels a sampler visits. Pure floats.

Definitions are ComfyUI's. Σ_k = √((1 − ᾱ_k) / ᾱ_k) are the noise levels that the network was
trained on, k = 0…T − 1 ascending.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from .errors import UnknownSchedule, nearest


@dataclass(frozen=True)
class NoiseSchedule:
    """The training noise levels `sigmas` (Σ, ascending) and their logarithms."""

    sigmas: tuple[float, ...]
    log_sigmas: tuple[float, ...]

    @classmethod
    def from_betas(cls, name: str, start: float, end: float, count: int) -> NoiseSchedule:
        """From β_k as diffusers names them: linear, scaled_linear or squaredcos_cap_v2.

        scaled_linear: β_k = (√start + (√end − √start) k / (count − 1))², that of SD 1.x, 2.x, XL.
        """
        if name not in BETAS:
            raise UnknownSchedule(
                f"beta schedule {name!r} is unknown{nearest(name, BETAS)}; known: "
                + ", ".join(BETAS)
            )
        if count < 2:
            raise ValueError(f"a noise schedule has at least 2 levels; {count} were asked for")
        kept, sigmas = 1.0, []
        for k in range(count):
            kept *= 1 - BETAS[name](start, end, k, count)
            sigmas.append(math.sqrt((1 - kept) / kept))
        return cls(tuple(sigmas), tuple(map(math.log, sigmas)))

    @property
    def sigma_min(self) -> float:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        return self.sigmas[-1]

    def sigma(self, t: float) -> float:
        """σ at a fractional timestep, log-linear between levels; t is clamped to 0…T − 1."""
        t = min(max(t, 0.0), len(self.sigmas) - 1.0)
        low = min(int(t), len(self.sigmas) - 2)
        w = t - low
        return math.exp((1 - w) * self.log_sigmas[low] + w * self.log_sigmas[low + 1])

    def timestep(self, sigma: float) -> float:
        """The fractional timestep of σ, log-linear between levels, 0…T − 1: the inverse of
        `sigma`, as k-diffusion, A1111 and diffusers' sigma-based schedulers have it."""
        if sigma <= self.sigma_min:
            return 0.0
        log = math.log(sigma)
        low = min(bisect_right(self.log_sigmas, log) - 1, len(self.sigmas) - 2)
        a, b = self.log_sigmas[low], self.log_sigmas[low + 1]
        return low + min(max((log - a) / (b - a), 0.0), 1.0)


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


def _spaced(start: float, end: float, count: int) -> list[float]:
    if count == 1:
        return [start]
    return [start + (end - start) * k / (count - 1) for k in range(count)]


def karras(steps: int, ns: NoiseSchedule) -> tuple[float, ...]:
    """Karras et al. 2022, arXiv:2206.00364, eq. 5, ρ = 7, over the whole trained range."""
    rho = 7.0
    high, low = ns.sigma_max ** (1 / rho), ns.sigma_min ** (1 / rho)
    return (*((high + u * (low - high)) ** rho for u in _spaced(0.0, 1.0, steps)), 0.0)


def normal(steps: int, ns: NoiseSchedule) -> tuple[float, ...]:
    """Timesteps evenly spaced from T − 1 to 0 (k-diffusion's get_sigmas, A1111's "Uniform")."""
    return (*(ns.sigma(t) for t in _spaced(len(ns.sigmas) - 1.0, 0.0, steps)), 0.0)


def simple(steps: int, ns: NoiseSchedule) -> tuple[float, ...]:
    """Every (T / steps)-th trained level from the highest down."""
    count = len(ns.sigmas)
    return (*(ns.sigmas[count - 1 - k * count // steps] for k in range(steps)), 0.0)


_SCHEDULES: dict[str, Callable[[int, NoiseSchedule], tuple[float, ...]]] = {
    "karras": karras,
    "normal": normal,
    "simple": simple,
}


def names() -> tuple[str, ...]:
    """The schedules there are."""
    return tuple(_SCHEDULES)


def get(name: str) -> str:
    """The canonical name of a schedule, any case. Raises UnknownSchedule."""
    if name.strip().lower() not in _SCHEDULES:
        raise UnknownSchedule(
            f"schedule {name!r} is unknown{nearest(name, _SCHEDULES)}; known: "
            + ", ".join(_SCHEDULES)
        )
    return name.strip().lower()


def sigmas(name: str, steps: int, ns: NoiseSchedule) -> tuple[float, ...]:
    """`steps` noise levels, descending, and a final 0. steps: 1…T."""
    if not 1 <= steps <= len(ns.sigmas):
        raise ValueError(f"steps is {steps}; it must be from 1 to {len(ns.sigmas)}")
    return _SCHEDULES[get(name)](steps, ns)
