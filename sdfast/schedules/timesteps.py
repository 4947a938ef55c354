"""Schedules that choose timesteps, and visit the trained levels there."""

from __future__ import annotations

from .noise_schedule import NoiseSchedule, spaced
from .registry import schedule


@schedule("Uniform", "Automatic")
def normal(steps: int, ns: NoiseSchedule) -> list[float]:
    """Timesteps evenly spaced from T − 1 to 0, both visited (k-diffusion's get_sigmas)."""
    return [ns.sigma(t) for t in spaced(len(ns.sigmas) - 1.0, 0.0, steps)]


@schedule()
def simple(steps: int, ns: NoiseSchedule) -> list[float]:
    """Every (T / steps)-th trained level from the highest down."""
    count = len(ns.sigmas)
    return [ns.sigmas[count - 1 - k * count // steps] for k in range(steps)]
