"""Schedules that choose timesteps, and visit the trained levels there."""

from __future__ import annotations

from ..ranges import Range
from .incomplete_beta import quantile
from .noise_schedule import NoiseSchedule, interpolated, spaced
from .registry import schedule

SHAPE = Range(0.1, 50.0)


@schedule("Uniform", "Automatic")
def normal(steps: int, ns: NoiseSchedule) -> list[float]:
    """Timesteps evenly spaced from T − 1 to 0, both visited (k-diffusion's get_sigmas)."""
    return [ns.sigma(t) for t in spaced(len(ns.sigmas) - 1.0, 0.0, steps)]


@schedule()
def sgm_uniform(steps: int, ns: NoiseSchedule) -> list[float]:
    """Timesteps evenly spaced from T − 1 to 0, the last replaced by the end of the run
    (Stability's generative-models)."""
    return [ns.sigma(t) for t in spaced(len(ns.sigmas) - 1.0, 0.0, steps + 1)[:-1]]


@schedule()
def simple(steps: int, ns: NoiseSchedule) -> list[float]:
    """Every (T / steps)-th trained level from the highest down."""
    count = len(ns.sigmas)
    return [ns.sigmas[count - 1 - k * count // steps] for k in range(steps)]


@schedule("DDIM")
def ddim_uniform(steps: int, ns: NoiseSchedule) -> list[float]:
    """Timesteps 1, 1 + q, 1 + 2q… below T with q = ⌊T / steps⌋: Song et al. 2020,
    arXiv:2010.02502, as CompVis wrote it. ⌈(T − 1) / q⌉ levels, which is not always `steps`."""
    count = len(ns.sigmas)
    return [ns.sigmas[t] for t in reversed(range(1, count, count // steps))]


@schedule("BetaSamplingScheduler", alpha=SHAPE, beta=SHAPE)
def beta(steps: int, ns: NoiseSchedule, alpha: float = 0.6, beta: float = 0.6) -> list[float]:
    """Timesteps at evenly spaced quantiles of Beta(alpha, beta): more of them at both ends. Lee
    et al. 2024, arXiv:2407.12173, as ComfyUI rounds them; A1111 and diffusers spread σ, not t."""
    last = len(ns.sigmas) - 1
    places = [quantile((steps - k) / steps, alpha, beta) * last for k in range(steps)]
    # A median of 1/2 lies halfway between two timesteps: the first rounding makes the tie exact,
    # the second goes to the even one.
    return [ns.sigmas[round(round(t, 9))] for t in places]


@schedule()
def trailing(steps: int, ns: NoiseSchedule) -> list[float]:
    """Timesteps T − 1, then down by T / steps, rounded half to even: Lin et al. 2023,
    arXiv:2305.08891, table 2, which is diffusers' timestep_spacing."""
    count = len(ns.sigmas)
    return [ns.sigmas[round(count - k * count / steps) - 1] for k in range(steps)]


@schedule()
def leading(steps: int, ns: NoiseSchedule) -> list[float]:
    """Timesteps 1, 1 + q, 1 + 2q… with q = ⌊T / steps⌋: diffusers' timestep_spacing with a
    steps_offset of 1, that of Stable Diffusion. One step visits timestep 1, T − 1 is seldom
    reached, and at T steps the highest level stands for timestep T, which there is none of."""
    count = len(ns.sigmas)
    return [ns.sigmas[min(1 + k * (count // steps), count - 1)] for k in reversed(range(steps))]


@schedule()
def linspace(steps: int, ns: NoiseSchedule) -> list[float]:
    """Timesteps evenly spaced from T − 1 to 0, both visited, σ linear between levels, not ln σ:
    timestep_spacing of diffusers' Euler, Heun, LMS and KDPM2. One step visits timestep 0."""
    times = reversed(spaced(0.0, len(ns.sigmas) - 1.0, steps))
    return [interpolated(ns.sigmas, t) for t in times]
