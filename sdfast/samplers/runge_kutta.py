"""Runge–Kutta methods in σ: several evaluations a step, no memory of the steps before."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from .euler import CHURN, churner, derivative, transfer
from .registry import sampler


@sampler(
    "heun",
    aliases=("k_heun", "sample_heun", "HeunDiscreteScheduler"),
    paper="arXiv:2206.00364",
    ranges=CHURN,
    evaluations=lambda steps: 2 * steps - 1,
)
def heun(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Any:
    """Heun's method: an Euler step, then the mean of the slopes at both its ends.

    Karras et al. 2022, algorithm 2: order 2, two evaluations a step but the last, noise only with
    s_churn > 0. Choose it for a converged picture when time matters little.
    """
    churn = churner(len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise, noise)
    for sigma, sigma_next in pairwise(sigmas):
        x, sigma = churn(x, sigma, sigma_next)
        denoised = model(x, sigma)
        if sigma_next == 0:
            x = denoised
            continue
        ahead = transfer(x, denoised, sigma, sigma_next)
        slopes = derivative(x, denoised, sigma) + derivative(
            ahead, model(ahead, sigma_next), sigma_next
        )
        x = x + (sigma_next - sigma) / 2 * slopes
    return x


@sampler(
    "heunpp2",
    aliases=("Heun++ 2", "sample_heunpp2"),
    paper="sd-webui-samplers-scheduler, no paper",
    ranges=CHURN,
    evaluations=lambda steps: max(3 * steps - 3, 1),
)
def heunpp2(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Any:
    """Heun++: slopes at this level and the next two, weighted by their σ; rich detail, dear.

    Order 1 (the weights are not Taylor's), three evaluations a step, two in the last but one and
    one in the last; noise only with s_churn > 0. Choose it for its look.
    """
    steps, top = len(sigmas) - 1, sigmas[0]
    churn = churner(steps, s_churn, s_tmin, s_tmax, s_noise, noise)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma = churn(x, sigma, sigma_next)
        slope = derivative(x, model(x, sigma), sigma)
        step = sigma_next - sigma
        if i == steps - 1:
            x = x + step * slope
            continue
        ahead = x + step * slope
        second = derivative(ahead, model(ahead, sigma_next), sigma_next)
        if i == steps - 2:
            w2 = sigma_next / (2 * top)
            x = x + step * ((1 - w2) * slope + w2 * second)
            continue
        beyond = sigmas[i + 2]
        ahead = ahead + (beyond - sigma_next) * second
        third = derivative(ahead, model(ahead, beyond), beyond)
        w2, w3 = sigma_next / (3 * top), beyond / (3 * top)
        x = x + step * ((1 - w2 - w3) * slope + w2 * second + w3 * third)
    return x


@sampler(
    "dpm_2",
    aliases=("DPM2", "k_dpm_2", "sample_dpm_2", "KDPM2DiscreteScheduler"),
    paper="arXiv:2206.00927",
    drops_penultimate=True,
    ranges=CHURN,
    evaluations=lambda steps: 2 * steps - 1,
)
def dpm_2(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Any:
    """DPM-Solver-2: the slope at the geometric middle of each step.

    Lu et al. 2022, algorithm 1, in Karras's frame: order 2, two evaluations a step but the last,
    noise only with s_churn > 0. Choose it as heun's equal with another error.
    """
    churn = churner(len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise, noise)
    for sigma, sigma_next in pairwise(sigmas):
        x, sigma = churn(x, sigma, sigma_next)
        denoised = model(x, sigma)
        if sigma_next == 0:
            x = denoised
            continue
        middle = math.sqrt(sigma * sigma_next)
        between = transfer(x, denoised, sigma, middle)
        x = x + (sigma_next - sigma) * derivative(between, model(between, middle), middle)
    return x
