"""Ancestral samplers: each step goes below its target and comes back up with fresh noise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from .euler import transfer
from .registry import Range, sampler


def ancestral_step(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """(down, up): where the deterministic part of a step ends, and the deviation of the noise that
    leads back to `target`; down² + up² = target². eta 0 adds none, 1 as much as DDPM."""
    if eta == 0 or target == 0:
        return target, 0.0
    variance = target**2 * (sigma**2 - target**2) / sigma**2
    up = min(target, eta * math.sqrt(variance))
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
    ranges={"eta": Range(0, 10), "s_noise": Range(0, 10)},
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
    "ddim",
    aliases=("DDIMScheduler",),
    paper="arXiv:2010.02502",
    ranges={"eta": Range(0, 1)},
)
def ddim(model: Any, x: Any, sigmas: Any, noise: Any, eta: float = 0.0) -> Any:
    """Denoising diffusion implicit models: deterministic at eta 0, DDPM at eta 1.

    Song et al. 2020, eq. 12: in sigma space its σ_τ(η) is the ancestral step's `up`, so it is
    euler at η = 0 and euler_ancestral above. Order 1, one evaluation a step. Choose it where
    inversion or parity with older work matters.
    """
    return euler_ancestral(model, x, sigmas, noise, eta=eta)
