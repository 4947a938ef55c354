"""Schedules that draw a curve from the highest to the lowest level, past the trained ones."""

from __future__ import annotations

from .noise_schedule import NoiseSchedule, spaced
from .registry import schedule

RHO = (0.1, 100.0)


@schedule("KarrasScheduler", "use_karras_sigmas", rho=RHO)
def karras(steps: int, ns: NoiseSchedule, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022, arXiv:2206.00364, eq. 5, over the whole trained range."""
    high, low = ns.sigma_max ** (1 / rho), ns.sigma_min ** (1 / rho)
    return [((1 - u) * high + u * low) ** rho for u in spaced(0.0, 1.0, steps)]
