"""Samplers of consistency models: every step starts anew from the denoised."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ..ranges import NOISES, Choice
from .registry import sampler


@sampler(
    "lcm",
    aliases=("k_lcm", "sample_lcm", "LCMScheduler"),
    paper="arXiv:2310.04378",
    stochastic=True,
)
def lcm(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
    """Latent consistency sampling: the denoised, put back under fresh noise.

    Luo et al. 2023, algorithm 2: of no order (it solves no equation), one evaluation a step, one
    draw a step but the last. Choose it for LCM-distilled models, 2 to 8 steps.
    """
    for sigma, sigma_next in pairwise(sigmas):
        x = model(x, sigma)
        if sigma_next > 0:
            x = x + sigma_next * noise(sigma, sigma_next)
    return x


@sampler(
    "lcm_custom_noise",
    aliases=("SamplerLCMCustom",),
    paper="arXiv:2310.04378",
    stochastic=True,
    ranges={"noise_kind": Choice(NOISES)},
)
def lcm_custom_noise(
    model: Any, x: Any, sigmas: Any, noise: Any, noise_kind: str = "gaussian"
) -> Any:
    """lcm with noise of another kind: pyramid noise for large shapes, perlin for soft ones.

    Of no order, one evaluation a step, one draw a step but the last. Choose it to play with an
    LCM's textures.
    """
    return lcm(model, x, sigmas, noise)
