"""Euler's method, the first-order step that all others refine, and Karras's churn."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from ..ranges import Allowed, Range
from .registry import sampler

CHURN: dict[str, Allowed] = {
    "s_churn": Range(0, 1e6),
    "s_tmin": Range(0, math.inf),
    "s_tmax": Range(0, math.inf),
    "s_noise": Range(0, 10),
}


def transfer(x: Any, denoised: Any, sigma: float, target: float) -> Any:
    """T(x, D, σ→τ) = D + (τ/σ)(x − D): along the line from x to D, whatever the parametrisation."""
    return (target / sigma) * x + (1 - target / sigma) * denoised


def derivative(x: Any, denoised: Any, sigma: float) -> Any:
    """ε = (x − D)/σ = dx/dσ of the probability-flow ODE."""
    return (x - denoised) * (1 / sigma)


def churner(
    steps: int, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float, noise: Any
) -> Any:
    """churn(x, σ, σ_next) → (x̂, σ̂): x raised by fresh noise to σ̂ = σ(1 + γ), with
    γ = min(s_churn / steps, √2 − 1) for σ in s_tmin…s_tmax (arXiv:2206.00364, algorithm 2)."""
    gamma = min(s_churn / steps, math.sqrt(2) - 1)

    def churn(x: Any, sigma: float, sigma_next: float) -> tuple[Any, float]:
        if gamma == 0 or not s_tmin <= sigma <= s_tmax:
            return x, sigma
        raised = sigma * (1 + gamma)
        up = s_noise * math.sqrt(raised**2 - sigma**2)
        return x + up * noise(sigma, sigma_next), raised

    return churn


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
    churn = churner(len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise, noise)
    for sigma, sigma_next in pairwise(sigmas):
        x, raised = churn(x, sigma, sigma_next)
        x = transfer(x, model(x, raised), raised, sigma_next)
    return x
