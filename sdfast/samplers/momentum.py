"""Samplers whose moves have momentum: each is blended with the moves before it.

All three are of ComfyUI-Extra-Samplers; at momentum 0 they are ordinary solvers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ..ranges import NOISES, Allowed, Choice, Range
from .ancestral import ancestral_step
from .dpmpp import SDE, phi1, phi2, refined, sde_noise
from .registry import sampler

MOMENTUM: dict[str, Allowed] = {"momentum": Range(0, 1)}


def velocity(momentum: float) -> Callable[[Any, float], Any]:
    """push(z, τ) → v ← w v + (1 − w) z with w = m(τ − m/2), τ = σ/σ_max; the first v is z."""
    memory: list[Any] = []

    def push(z: Any, tau: float) -> Any:
        w = momentum * (tau - momentum / 2)
        memory[:] = [w * memory[0] + (1 - w) * z if memory and w != 0 else z]
        return memory[0]

    return push


@sampler(
    "dpmpp_dualsde_momentumized",
    aliases=("SamplerDPMPP_DualSDE_Momentumized",),
    paper="ComfyUI-Extra-Samplers, no paper",
    stochastic=True,
    drops_penultimate=True,
    ranges={**SDE, **MOMENTUM, "r": Range(0.01, 1)},
    evaluations=lambda steps: 2 * steps - 1,
)
def dpmpp_dualsde_momentumized(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    momentum: float = 0.0,
    noise_kind: str = "gaussian",
) -> Any:
    """dpmpp_sde that also remembers three steps and has momentum.

    Order 1, since it corrects what its second stage corrected already. Two evaluations and two
    draws a step, one and none in the last. Choose it for texture from 10 to 20 steps; momentum 0.5
    gives bolder pictures.
    """
    push_a, push_b, push_c = (velocity(momentum) for _ in range(3))
    values: list[Any] = []
    widths: list[float] = []
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma)
        if sigma_next == 0:
            return denoised
        h, tau = math.log(sigma / sigma_next), sigma / sigmas[0]
        middle = sigma * (sigma_next / sigma) ** r
        down, up = ancestral_step(sigma, middle, eta)
        between = down / sigma * x + push_a((1 - down / sigma) * denoised, tau)
        between = between + s_noise * up * noise(sigma, middle)
        mixed = (1 - 1 / (2 * r)) * denoised + 1 / (2 * r) * model(between, middle)
        values, widths = [mixed, *values][:4], [h, *widths][:4]
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = down / sigma * x + push_b((1 - down / sigma) * mixed, tau)
        if (further := refined(values, widths, h * (1 + eta))) is not None:
            x = x + push_c(further, tau)
        if eta > 0:
            x = x + s_noise * up * noise(sigma, sigma_next)
    return x


@sampler(
    "clyb_4m_sde_momentumized",
    aliases=("SamplerCLYB_4M_SDE_Momentumized",),
    paper="ComfyUI-Extra-Samplers, no paper",
    stochastic=True,
    noise="brownian",
    drops_penultimate=True,
    ranges={**SDE, **MOMENTUM},
)
def clyb_4m_sde_momentumized(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    eta: float = 1.0,
    s_noise: float = 1.0,
    momentum: float = 0.0,
    noise_kind: str = "brownian",
) -> Any:
    """dpmpp_3m_sde with one more step of memory, and momentum.

    Order 2 at eta 0, one evaluation a step, one draw a step but the last where eta > 0. Choose it
    for texture from 20 steps on; momentum 0.5 gives bolder pictures.
    """
    push_a, push_b = velocity(momentum), velocity(momentum)
    values: list[Any] = []
    widths: list[float] = []
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma)
        if sigma_next == 0:
            return denoised
        h, tau = math.log(sigma / sigma_next), sigma / sigmas[0]
        total = h * (1 + eta)
        values, widths = [denoised, *values][:4], [h, *widths][:4]
        x = math.exp(-total) * x + push_a(-math.expm1(-total) * denoised, tau)
        if (further := refined(values, widths, total)) is not None:
            x = x + push_b(further, tau)
        if eta > 0:
            x = x + s_noise * sde_noise(sigma, sigma_next, eta) * noise(sigma, sigma_next)
    return x


@sampler(
    "res_momentumized",
    aliases=("SamplerRES_Momentumized",),
    paper="arXiv:2308.02157",
    stochastic=True,
    ranges={
        "ita": Range(0, 10),
        "c2": Range(0.01, 1),
        **MOMENTUM,
        "noise_kind": Choice(NOISES),
    },
    evaluations=lambda steps: 2 * steps - 1,
)
def res_momentumized(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    ita: float = 0.25,
    c2: float = 0.5,
    momentum: float = 0.0,
    noise_kind: str = "gaussian",
) -> Any:
    """Refined exponential solver: two stages with exact order conditions, churn, and momentum.

    Zhang et al. 2023, algorithm 2 (c₂ = ½) over levels raised by ita: order 2 at ita 0, two
    evaluations and one draw a step, one evaluation in the last. Choose it for 10 steps and fewer;
    ita 0 for no noise.
    """
    if len(sigmas) == 2 and sigmas[1] == 0:
        return model(x, sigmas[0])
    push_a, push_b = velocity(momentum), velocity(momentum)
    for sigma, sigma_next in pairwise(sigmas):
        raised, tau = sigma * (1 + ita), sigma / sigmas[0]
        x = x + math.sqrt(raised**2 - sigma**2) * noise(sigma, sigma_next)
        denoised = model(x, raised)
        if sigma_next == 0:
            return denoised
        h = math.log(raised / sigma_next)
        first = push_a(c2 * h * phi1(c2 * h) * denoised, tau)
        between = math.exp(-c2 * h) * x + first
        second = model(between, raised * math.exp(-c2 * h))
        b2 = phi2(h) / c2
        b1 = phi1(h) - b2
        x = math.exp(-h) * x + push_b(h * (b1 * denoised + b2 * second), tau)
    return x
