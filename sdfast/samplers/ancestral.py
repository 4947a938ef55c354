"""Ancestral samplers: each step goes below its target and comes back up with fresh noise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from ..ranges import NOISES, Allowed, Choice, Range
from .euler import derivative, transfer
from .registry import sampler

ETA: dict[str, Allowed] = {"eta": Range(0, 10), "s_noise": Range(0, 10)}


def ancestral_step(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """(down, up): where the deterministic part of a step ends, and the deviation of the noise that
    leads back to `target`; down² + up² = target². eta 0 adds none, 1 as much as DDPM. A step
    upward (target > sigma) starts anew from the denoised: down 0."""
    if eta == 0 or target == 0:
        return target, 0.0
    variance = target**2 * (sigma**2 - target**2) / sigma**2
    up = target if variance < 0 else min(target, eta * math.sqrt(variance))
    return math.sqrt(target**2 - up**2), up


@sampler(
    "euler_ancestral",
    aliases=(
        "Euler a",
        "k_euler_a",
        "k_euler_ancestral",
        "sample_euler_ancestral",
        "EulerAncestralDiscreteScheduler",
    ),
    paper="arXiv:2006.11239",
    stochastic=True,
    ranges=ETA,
)
def euler_ancestral(
    model: Any, x: Any, sigmas: Any, noise: Any, eta: float = 1.0, s_noise: float = 1.0
) -> Any:
    """Euler steps with DDPM's noise in sigma space; varied pictures that never settle.

    Order 1, one evaluation a step, one draw a step but the last. Choose it for variety: more steps
    go on changing the picture.
    """
    for sigma, sigma_next in pairwise(sigmas):
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = transfer(x, model(x, sigma), sigma, down)
        if sigma_next > 0 and up > 0:
            x = x + s_noise * up * noise(sigma, sigma_next)
    return x


@sampler(
    "euler_ancestral_dancing",
    aliases=("SamplerEulerAncestralDancing_Experimental",),
    paper="ComfyUI-Extra-Samplers, no paper",
    stochastic=True,
    ranges={
        **ETA,
        "eta_dance": Range(0, 10),
        "leap": Range(1, 16, whole=True),
        "noise_kind": Choice(NOISES),
    },
)
def euler_ancestral_dancing(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    eta: float = 1.0,
    eta_dance: float = 1.0,
    s_noise: float = 1.0,
    leap: int = 2,
    noise_kind: str = "gaussian",
) -> Any:
    """Ancestral steps that leap ahead and come back up; loose, inventive pictures.

    Order 1, one evaluation a step; a step that can leap draws twice, the others once. With
    eta_dance above 0 the way back renews all noise, as lcm does. Choose it to explore.
    """
    steps = len(sigmas) - 1
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        dances = i + leap <= steps and sigmas[i + leap] > 0
        goal = sigmas[i + leap] if dances else sigma_next
        denoised = model(x, sigma)
        down, up = ancestral_step(sigma, goal, eta)
        x = transfer(x, denoised, sigma, down)
        if sigma_next > 0:
            x = x + s_noise * up * noise(sigma, goal)
        if dances:
            back, up = ancestral_step(goal, sigma_next, eta_dance)
            x = transfer(x, denoised, goal, back) + s_noise * up * noise(goal, sigma_next)
    return x


@sampler(
    "dpm_2_ancestral",
    aliases=(
        "DPM2 a",
        "k_dpm_2_a",
        "k_dpm_2_ancestral",
        "sample_dpm_2_ancestral",
        "KDPM2AncestralDiscreteScheduler",
    ),
    paper="arXiv:2206.00927",
    stochastic=True,
    drops_penultimate=True,
    ranges=ETA,
    evaluations=lambda steps: 2 * steps - 1,
)
def dpm_2_ancestral(
    model: Any, x: Any, sigmas: Any, noise: Any, eta: float = 1.0, s_noise: float = 1.0
) -> Any:
    """DPM-Solver-2 with ancestral noise; sharper than Euler a at twice its price.

    Midpoint steps (order 2 at eta 0), two evaluations a step but the last, one draw a step but the
    last. Choose it where euler_ancestral leaves too little detail.
    """
    for sigma, sigma_next in pairwise(sigmas):
        eps = derivative(x, model(x, sigma), sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        if down == 0:
            x = x - sigma * eps
            continue
        middle = math.sqrt(sigma * down)
        between = x + (middle - sigma) * eps
        eps = derivative(between, model(between, middle), middle)
        x = x + (down - sigma) * eps + s_noise * up * noise(sigma, sigma_next)
    return x


@sampler(
    "ddim",
    aliases=("DDIMScheduler",),
    paper="arXiv:2010.02502",
    ranges={"eta": Range(0, 1)},
)
def ddim(model: Any, x: Any, sigmas: Any, noise: Any, eta: float = 0.0) -> Any:
    """Denoising diffusion implicit models: deterministic at eta 0, DDPM at eta 1.

    Song et al. 2020, eq. 12: in sigma space its σ_τ(η) is the ancestral step's `up`, so it is
    euler at η = 0 and euler_ancestral above. Order 1, one evaluation a step, a draw a step where
    η > 0. Choose it where inversion or parity with older work matters.
    """
    return euler_ancestral(model, x, sigmas, noise, eta=eta)


@sampler(
    "ddpm",
    aliases=("DDPMScheduler", "sample_ddpm"),
    paper="arXiv:2006.11239",
    stochastic=True,
)
def ddpm(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
    """Denoising diffusion probabilistic models: the original Markov chain, any steps of it.

    Ho et al. 2020, algorithm 2 with the fixed small variance, which in sigma space is
    euler_ancestral. Order 1, one evaluation a step, one draw a step but the last. Choose it for
    hundreds of steps or for parity with older work.
    """
    return euler_ancestral(model, x, sigmas, noise)
