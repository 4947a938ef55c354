"""Euler's method, the first-order step that all others refine."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from .registry import Range, sampler

CHURN = {
    "s_churn": Range(0, 1e6),
    "s_tmin": Range(0, math.inf),
    "s_tmax": Range(0, math.inf),
    "s_noise": Range(0, 10),
}


def transfer(x: Any, denoised: Any, sigma: float, target: float) -> Any:
    """T(x, D, σ→τ) = D + (τ/σ)(x − D): along the line from x to D, whatever the parametrisation."""
    return (target / sigma) * x + (1 - target / sigma) * denoised


def churn(
    x: Any, sigma: float, gamma: float, s_noise: float, noise: Any, sigma_next: float
) -> tuple[Any, float]:
    """x raised to the level σ̂ = σ(1 + γ) by fresh noise (arXiv:2206.00364, algorithm 2)."""
    if gamma == 0:
        return x, sigma
    raised = sigma * (1 + gamma)
    return x + s_noise * math.sqrt(raised**2 - sigma**2) * noise(sigma, sigma_next), raised


@sampler(
    "euler",
    aliases=("k_euler", "sample_euler", "EulerDiscreteScheduler"),
    paper="arXiv:2206.00364",
    ranges=CHURN,
)
def euler(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Any:
    """Euler steps along the probability-flow ODE; fast, smooth, forgiving.

    Karras et al. 2022, algorithm 2 without its correction: order 1, one evaluation a step, noise
    only with s_churn > 0, between s_tmin and s_tmax. Choose it to compare others with.
    """
    steps = len(sigmas) - 1
    for sigma, sigma_next in pairwise(sigmas):
        gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        x, raised = churn(x, sigma, gamma, s_noise, noise, sigma_next)
        x = transfer(x, model(x, raised), raised, sigma_next)
    return x
