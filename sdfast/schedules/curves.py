"""Schedules that draw a curve from the highest to the lowest level, past the trained ones."""

from __future__ import annotations

import math

from ..ranges import Choice, Range
from .noise_schedule import NoiseSchedule, interpolated, spaced
from .registry import schedule

RHO = Range(0.1, 100.0)


@schedule("KarrasScheduler", "use_karras_sigmas", rho=RHO)
def karras(steps: int, ns: NoiseSchedule, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022, arXiv:2206.00364, eq. 5, over the whole trained range."""
    high, low = ns.sigma_max ** (1 / rho), ns.sigma_min ** (1 / rho)
    return [((1 - u) * high + u * low) ** rho for u in spaced(0.0, 1.0, steps)]


@schedule("ExponentialScheduler", "use_exponential_sigmas")
def exponential(steps: int, ns: NoiseSchedule) -> list[float]:
    """ln σ evenly spaced."""
    return [*polyexponential(steps, ns, rho=1.0)]


@schedule("PolyexponentialScheduler", rho=RHO)
def polyexponential(steps: int, ns: NoiseSchedule, rho: float = 1.0) -> list[float]:
    """ln σ falls as a power ρ (k-diffusion's get_sigmas_polyexponential)."""
    high, low = ns.log_sigmas[-1], ns.log_sigmas[0]
    return [math.exp(v**rho * (high - low) + low) for v in spaced(1.0, 0.0, steps)]


@schedule()
def kl_optimal(steps: int, ns: NoiseSchedule) -> list[float]:
    """arctan σ evenly spaced: Sabour et al. 2024, arXiv:2404.14507."""
    high, low = math.atan(ns.sigma_max), math.atan(ns.sigma_min)
    return [math.tan((1 - u) * high + u * low) for u in spaced(0.0, 1.0, steps)]


@schedule(threshold=Range(0.001, 0.5))
def linear_quadratic(steps: int, ns: NoiseSchedule, threshold: float = 0.025) -> list[float]:
    """σ falls linearly over the first half of the steps, by `threshold` of σ_max in all, then
    quadratically to 0 with no kink between (Polyak et al. 2024, arXiv:2410.13720, as ComfyUI
    has it). Above 0.5 the quadratic part would overshoot 0."""
    if steps == 1:
        return [ns.sigma_max]
    half, rest = steps // 2, steps - steps // 2
    delta = half - threshold * steps
    # y = q i² + b i + c meets the line at i = half with its slope, and 1 at i = steps.
    q = delta / (half * rest**2)
    b, c = threshold / half - 2 * delta / rest**2, q * half**2
    gone = [i * threshold / half if i < half else q * i**2 + b * i + c for i in range(steps)]
    return [(1 - y) * ns.sigma_max for y in gone]


# Sabour et al. 2024, the authors' published schedules of ten steps. The last level stands for the
# end of the run and gives its place to 0.
ALIGNED = {
    "sd1": (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092),
        *(0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    ),
    "sdxl": (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141),
        *(0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    ),
}


@schedule("AlignYourStepsScheduler", "AYS", family=Choice(tuple(ALIGNED)))
def align_your_steps(steps: int, ns: NoiseSchedule, family: str = "sd1") -> list[float]:
    """Levels optimised for Stable Diffusion 1.5 ("sd1") or XL ("sdxl"), log-linear between:
    Sabour et al. 2024, arXiv:2404.14507. They are fixed: `ns` has no part in them."""
    knots = [math.log(level) for level in ALIGNED[family]]
    return [math.exp(interpolated(knots, at)) for at in spaced(0.0, 10.0, steps + 1)[:-1]]
