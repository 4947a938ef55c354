"""DPM-Solver++: exponential integrators of the denoised prediction in λ = −ln σ."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from .euler import transfer
from .registry import sampler


@sampler(
    "dpmpp_2m",
    aliases=(
        "DPM++ 2M",
        "DPM++ 2M Karras",
        "k_dpmpp_2m",
        "sample_dpmpp_2m",
        "DPMSolverMultistepScheduler",
    ),
    paper="arXiv:2211.01095",
)
def dpmpp_2m(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
    """DPM-Solver++(2M): second order at one evaluation a step; the usual best choice.

    Lu et al. 2022, algorithm 2: multistep, deterministic, no noise. Converged for most pictures
    at 20 steps with the karras schedule.
    """
    previous: Any = None
    h_previous = 0.0
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma)
        if previous is None or sigma_next == 0:
            extrapolated = denoised
        else:
            h = math.log(sigma / sigma_next)
            r = h_previous / h
            extrapolated = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * previous
        x = transfer(x, extrapolated, sigma, sigma_next)
        previous = denoised
        h_previous = math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
    return x
