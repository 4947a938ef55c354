"""Linear multistep methods on ε: one evaluation a step, slopes of earlier steps reused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from ..errors import InvalidRequest
from ..ranges import Flag, Listed, Range
from .euler import derivative, transfer
from .registry import sampler

# Adams–Bashforth's weights for equal steps, newest slope first, by how many slopes there are.
ADAMS_BASHFORTH: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)

# Gauss–Legendre's positive nodes and their weights, order 8: exact to degree 15.
GAUSS = (
    (0.1834346424956498, 0.3626837833783620),
    (0.5255324099163290, 0.3137066458778873),
    (0.7966664774136267, 0.2223810344533745),
    (0.9602898564975363, 0.1012285362903763),
)


def weighted(weights: Sequence[float], slopes: Sequence[Any]) -> Any:
    """Σ wⱼ · slopeⱼ."""
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        total = total + weight * slope
    return total


def lagrange_integrals(
    knots: Sequence[float], start: float, end: float, time: Callable[[float], float]
) -> list[float]:
    """∫ Lⱼ(time(σ)) dσ from start to end, Lⱼ being Lagrange's polynomials over time(knots)."""
    middle, half = (start + end) / 2, (end - start) / 2
    nodes = [(middle + sign * half * u, half * w) for u, w in GAUSS for sign in (-1, 1)]
    at = [time(knot) for knot in knots]
    weights = []
    for j, own in enumerate(at):
        others = [other for k, other in enumerate(at) if k != j]
        weights.append(
            sum(
                w * math.prod((time(sigma) - other) / (own - other) for other in others)
                for sigma, w in nodes
            )
        )
    return weights


@sampler(
    "lms",
    aliases=("k_lms", "sample_lms", "LMSDiscreteScheduler"),
    paper="k-diffusion, no paper",
    ranges={"order": Range(1, 4, whole=True), "denoise_last": Flag()},
)
def lms(
    model: Any, x: Any, sigmas: Any, noise: Any, order: int = 4, denoise_last: bool = False
) -> Any:
    """Linear multistep: Adams–Bashforth in σ with weights for the steps as they are.

    Order 4 once it has four slopes (`order`), one evaluation a step, no noise. denoise_last ends
    in the denoised, as ComfyUI does since July 2025, in place of the polynomial's value at 0.
    Choose it for a picture close to the converged one.
    """
    slopes: list[Any] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        if sigma_next == 0 and denoise_last:
            return denoised
        slopes = [derivative(x, denoised, sigma), *slopes][:order]
        knots = sigmas[i::-1][: len(slopes)]
        x = x + weighted(lagrange_integrals(knots, sigma, sigma_next, float), slopes)
    return x


@sampler(
    "pndm",
    aliases=("F-PNDM",),
    paper="arXiv:2202.09778",
    ranges={"middles": Listed(Range(1e-5, 1e5))},
    evaluations=lambda steps: steps + 3 * min(3, steps - 1),
)
def pndm(model: Any, x: Any, sigmas: Any, noise: Any, middles: tuple[float, ...] = ()) -> Any:
    """Pseudo numerical methods: three Runge–Kutta steps, then Adams–Bashforth with four slopes.

    Liu et al. 2022, algorithm 1: order 4 on equal steps and 2 on others, four evaluations in each
    of the first three steps and one after, no noise. middles: the σ between the ends of those
    steps; the geometric means unless given (diffusers takes the σ of the middle timestep). Choose
    it for parity with diffusers' PNDMScheduler(skip_prk_steps=False).
    """
    slopes: list[Any] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        first = derivative(x, model(x, sigma), sigma)
        slopes = [first, *slopes][:4]
        step = sigma_next - sigma
        if i >= 3 or sigma_next == 0:
            x = x + step * weighted(ADAMS_BASHFORTH[len(slopes) - 1], slopes)
            continue
        middle = middles[i] if i < len(middles) else math.sqrt(sigma * sigma_next)
        if not sigma_next < middle < sigma:
            raise InvalidRequest(
                f"middle {middle:g} of pndm lies outside its step from {sigma:g} to {sigma_next:g}"
            )

        def slope(y: Any, level: float) -> Any:
            return derivative(y, model(y, level), level)

        second = slope(x + (middle - sigma) * first, middle)
        third = slope(x + (middle - sigma) * second, middle)
        fourth = slope(x + step * third, sigma_next)
        x = x + step / 6 * (first + 2 * second + 2 * third + fourth)
    return x


@sampler(
    "plms",
    aliases=("PNDMScheduler", "k_plms"),
    paper="arXiv:2202.09778",
    evaluations=lambda steps: steps + (steps > 1),
)
def plms(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
    """Pseudo linear multistep: Adams–Bashforth with equal-step weights, begun by one Heun step.

    Liu et al. 2022 as CompVis and diffusers (skip_prk_steps) run it: order 4 on equal steps and 2
    on others, one evaluation a step and one more in the first, no noise. Choose it for parity with
    older pictures.
    """
    slopes: list[Any] = []
    for sigma, sigma_next in pairwise(sigmas):
        slope = derivative(x, model(x, sigma), sigma)
        slopes = [slope, *slopes][:4]
        step = sigma_next - sigma
        if len(slopes) > 1 or sigma_next == 0:
            x = x + step * weighted(ADAMS_BASHFORTH[len(slopes) - 1], slopes)
        else:
            ahead = x + step * slope
            second = derivative(ahead, model(ahead, sigma_next), sigma_next)
            x = x + step / 2 * (slope + second)
    return x


@sampler(
    "ipndm",
    aliases=("sample_ipndm", "IPNDMScheduler"),
    paper="arXiv:2204.13902",
    ranges={"max_order": Range(1, 4, whole=True)},
)
def ipndm(model: Any, x: Any, sigmas: Any, noise: Any, max_order: int = 4) -> Any:
    """Improved PNDM: Adams–Bashforth with equal-step weights, order growing from 1.

    Zhang and Chen 2022: order 4 on equal steps and 2 on others, one evaluation a step, no noise.
    Choose it for 10 steps and fewer, on schedules whose steps shrink slowly.
    """
    slopes: list[Any] = []
    for sigma, sigma_next in pairwise(sigmas):
        slopes = [derivative(x, model(x, sigma), sigma), *slopes][:max_order]
        x = x + (sigma_next - sigma) * weighted(ADAMS_BASHFORTH[len(slopes) - 1], slopes)
    return x


def _uneven_weights(steps: Sequence[float]) -> tuple[float, ...]:
    """ipndm_v's weights; steps: this one, H, and those before it, g₀, g₁, …, newest first.

    The third difference's factor reads 1 − a/b where exact integration has (1 − a)/b: so the
    sampler is known, so it stays.
    """
    if len(steps) == 1:
        return (1.0,)
    h, g0 = steps[0], steps[1]
    a = h / g0
    if len(steps) == 2:
        return (1 + a / 2, -a / 2)
    g1 = steps[2]
    y = (1 - h / (3 * (h + g0)) * (h * (h + g0)) / (g0 * (g0 + g1))) / 2
    p = g0 / g1
    if len(steps) == 3:
        return (1 + a / 2 + y, -a / 2 - (1 + p) * y, p * y)
    g2 = steps[3]
    z = (1 - h / (3 * (h + g0))) / 2 + (1 - h / (2 * (h + g0))) * h / (6 * (h + g0 + g1))
    z *= h * (h + g0) * (h + g0 + g1) / (g0 * (g0 + g1) * (g0 + g1 + g2))
    rho = g0 * (g0 + g1) / (g1 * (g1 + g2))
    return (
        1 + a / 2 + y + z,
        -a / 2 - (1 + p) * y - (1 + p + rho) * z,
        p * y + (p + rho * (1 + g1 / g2)) * z,
        -rho * p * z,
    )


@sampler(
    "ipndm_v",
    aliases=("sample_ipndm_v",),
    paper="arXiv:2204.13902",
    ranges={"max_order": Range(1, 4, whole=True)},
)
def ipndm_v(model: Any, x: Any, sigmas: Any, noise: Any, max_order: int = 4) -> Any:
    """ipndm with weights for uneven steps.

    Zhang and Chen 2022: order 3 (its fourth weight is not Taylor's), one evaluation a step, no
    noise. Choose it in place of ipndm on schedules whose steps shrink fast, such as karras.
    """
    slopes: list[Any] = []
    steps: list[float] = []
    for sigma, sigma_next in pairwise(sigmas):
        slopes = [derivative(x, model(x, sigma), sigma), *slopes][:max_order]
        steps = [sigma_next - sigma, *steps][:max_order]
        x = x + (sigma_next - sigma) * weighted(_uneven_weights(steps), slopes)
    return x


def _vp_time(sigma: float) -> float:
    """τ(σ) of the continuous VP process with σ(0.001) = 0.002 and σ(1) = 80, in whose variable
    DEIS interpolates: σ² + 1 = exp(½ β_d τ² + β_m τ)."""
    low, high = math.log(0.002**2 + 1), math.log(80**2 + 1)
    beta_d = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    beta_m = high - beta_d / 2
    return (math.sqrt(beta_m**2 + 2 * beta_d * math.log1p(sigma**2)) - beta_m) / beta_d


@sampler(
    "deis",
    aliases=("sample_deis", "DEISMultistepScheduler"),
    paper="arXiv:2204.13902",
    ranges={"max_order": Range(1, 4, whole=True)},
)
def deis(model: Any, x: Any, sigmas: Any, noise: Any, max_order: int = 3) -> Any:
    """Diffusion exponential integrator: multistep with polynomials in the VP process's time.

    Zhang and Chen 2022, eq. 15 (tAB-DEIS): order up to max_order, one evaluation a step, no noise,
    first order at the start and to 0. Choose it for 10 to 20 steps.
    """
    slopes: list[Any] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        slopes = [derivative(x, denoised, sigma), *slopes][:max_order]
        if sigma_next == 0 or len(slopes) == 1:
            x = transfer(x, denoised, sigma, sigma_next)
            continue
        knots = sigmas[i::-1][: len(slopes)]
        x = x + weighted(lagrange_integrals(knots, sigma, sigma_next, _vp_time), slopes)
    return x
