"""DPM-Solver++: exponential integrators of the denoised prediction in λ = −ln σ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..ranges import NOISES, Allowed, Choice, Range
from .ancestral import ETA, ancestral_step
from .euler import transfer
from .registry import sampler

SDE: dict[str, Allowed] = {**ETA, "noise_kind": Choice(NOISES)}


def p2(h: float) -> float:
    """h φ₂(h) = expm1(−h)/h + 1; → h/2."""
    return math.expm1(-h) / h + 1 if h > 1e-4 else h / 2 - h * h / 6


def p3(h: float) -> float:
    """p₂(h)/h − ½; → −h/6."""
    return p2(h) / h - 0.5 if h > 1e-4 else -h / 6


def phi1(h: float) -> float:
    """φ₁ = (1 − e^(−h)) / h; → 1."""
    return -math.expm1(-h) / h if h > 1e-8 else 1.0


def phi2(h: float) -> float:
    """φ₂ = (e^(−h) − 1 + h) / h²; → ½."""
    return p2(h) / h


def sde_noise(sigma: float, sigma_next: float, eta: float) -> float:
    """The deviation of the noise of an SDE step: σ_next √(1 − e^(−2ηh))."""
    return sigma_next * math.sqrt(-math.expm1(-2 * eta * math.log(sigma / sigma_next)))


def _differences3(values: Sequence[Any], h: float, h_1: float, h_2: float) -> tuple[Any, Any]:
    """First and second differences of D at this step and the two before (newest first)."""
    r0, r1 = h_1 / h, h_2 / h
    a, b = (values[0] - values[1]) * (1 / r0), (values[1] - values[2]) * (1 / r1)
    second = (a - b) * (1 / (r0 + r1))
    return a + r0 * second, second


def _differences4(values: Sequence[Any], widths: Sequence[float]) -> tuple[Any, Any]:
    """Differences of D over this step and the three before, newest first, weighted as this family
    has always weighted them (not Taylor's)."""
    h, h1, h2, h3 = widths
    r0, r1, r2 = h3 / h2, h2 / h, h / h1
    a, b, c = ((values[k] - values[k + 1]) * (1 / r) for k, r in enumerate((r2, r1, r0)))
    u = (a - b) * (r2 / (r1 + r2))
    w = u - (b - c) * (r1 / (r0 + r1))
    q = (r1 + r2) * (r0 + r1)
    return a + u + w * (r2 / q), (a - b) * (1 / (r1 + r2)) + w * (1 / q)


def refined(values: Sequence[Any], widths: Sequence[float], total: float) -> Any:
    """What the D of earlier steps add to an exponential step of width `total`; None at first."""
    if len(values) == 1:
        return None
    if len(values) == 2:
        return p2(total) * widths[0] / widths[1] * (values[0] - values[1])
    differences = (
        _differences3(values, *widths) if len(values) == 3 else _differences4(values, widths)
    )
    return p2(total) * differences[0] - p3(total) * differences[1]


@sampler(
    "dpmpp_2m",
    aliases=(
        "DPM++ 2M",
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


@sampler(
    "dpmpp_2m_sde",
    aliases=(
        "DPM++ 2M SDE",
        "k_dpmpp_2m_sde",
        "sample_dpmpp_2m_sde",
        "dpmpp_2m_sde_gpu",
    ),
    paper="arXiv:2211.01095",
    stochastic=True,
    noise="brownian",
    ranges={**SDE, "solver_type": Choice(("midpoint", "heun"))},
)
def dpmpp_2m_sde(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    noise_kind: str = "brownian",
) -> Any:
    """DPM-Solver++(2M) for the SDE: detail that keeps its place as steps grow.

    Lu et al. 2022, SDE form: order 2 in its deterministic part, one evaluation a step, one draw a
    step but the last. Choose it for texture at 25 steps and more.
    """
    previous: Any = None
    h_previous = 0.0
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        total = h * (1 + eta)
        x = math.exp(-total) * x - math.expm1(-total) * denoised
        if previous is not None:
            c = -0.5 * math.expm1(-total) if solver_type == "midpoint" else p2(total)
            x = x + c * (h / h_previous) * (denoised - previous)
        if eta > 0:
            x = x + s_noise * sde_noise(sigma, sigma_next, eta) * noise(sigma, sigma_next)
        previous, h_previous = denoised, h
    return x


@sampler(
    "dpmpp_sde",
    aliases=(
        "DPM++ SDE",
        "k_dpmpp_sde",
        "sample_dpmpp_sde",
        "dpmpp_sde_gpu",
        "DPMSolverSDEScheduler",
    ),
    paper="arXiv:2211.01095",
    stochastic=True,
    noise="brownian",
    ranges={**SDE, "r": Range(0.01, 1)},
    evaluations=lambda steps: 2 * steps - 1,
)
def dpmpp_sde(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    noise_kind: str = "brownian",
) -> Any:
    """DPM-Solver++ in one stochastic step of two stages; good pictures from few steps.

    k-diffusion's stochastic form of Lu et al. 2022: order 2 at eta 0, two evaluations and two draws
    a step, one and none in the last; r places the middle. Choose it for 8 to 15 steps.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma)
        if sigma_next == 0:
            return denoised
        middle = sigma * (sigma_next / sigma) ** r
        down, up = ancestral_step(sigma, middle, eta)
        between = transfer(x, denoised, sigma, down) + s_noise * up * noise(sigma, middle)
        mixed = (1 - 1 / (2 * r)) * denoised + 1 / (2 * r) * model(between, middle)
        down, up = ancestral_step(sigma, sigma_next, eta)
        x = transfer(x, mixed, sigma, down) + s_noise * up * noise(sigma, sigma_next)
    return x


@sampler(
    "dpmpp_2s_ancestral",
    aliases=(
        "DPM++ 2S a",
        "k_dpmpp_2s_a",
        "k_dpmpp_2s_ancestral",
        "sample_dpmpp_2s_ancestral",
    ),
    paper="arXiv:2211.01095",
    stochastic=True,
    ranges=ETA,
    evaluations=lambda steps: 2 * steps - 1,
)
def dpmpp_2s_ancestral(
    model: Any, x: Any, sigmas: Any, noise: Any, eta: float = 1.0, s_noise: float = 1.0
) -> Any:
    """DPM-Solver++(2S) with ancestral noise; varied like Euler a, cleaner.

    Lu et al. 2022, algorithm 1, r = ½: order 2 at eta 0, two evaluations a step but the last, one
    draw a step but the last. Choose it for variety where time allows.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        if down == 0:
            x = denoised
        else:
            middle = math.sqrt(sigma * down)
            between = transfer(x, denoised, sigma, middle)
            x = transfer(x, model(between, middle), sigma, down)
        if sigma_next > 0:
            x = x + s_noise * up * noise(sigma, sigma_next)
    return x


def _third_order(
    model: Any, x: Any, sigmas: Any, noise: Any, etas: Sequence[float], s_noise: float
) -> Any:
    """DPM-Solver++(3M) for the SDE, with its own eta for each step."""
    values: list[Any] = []
    widths: list[float] = []
    for (sigma, sigma_next), eta in zip(pairwise(sigmas), etas, strict=True):
        denoised = model(x, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        total = h * (1 + eta)
        values, widths = [denoised, *values][:3], [h, *widths][:3]
        x = math.exp(-total) * x - math.expm1(-total) * denoised
        if (further := refined(values, widths, total)) is not None:
            x = x + further
        if eta > 0:
            x = x + s_noise * sde_noise(sigma, sigma_next, eta) * noise(sigma, sigma_next)
    return x


@sampler(
    "dpmpp_3m_sde",
    aliases=(
        "DPM++ 3M SDE",
        "k_dpmpp_3m_sde",
        "sample_dpmpp_3m_sde",
        "dpmpp_3m_sde_gpu",
    ),
    paper="arXiv:2211.01095",
    stochastic=True,
    noise="brownian",
    ranges=SDE,
)
def dpmpp_3m_sde(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_kind: str = "brownian",
) -> Any:
    """DPM-Solver++(3M) for the SDE: fine texture with many steps.

    k-diffusion's stochastic three-step form of Lu et al. 2022: order 2, since its second difference
    has half of Taylor's weight, as everywhere; one evaluation a step, one draw a step but the last.
    Choose it from 30 steps on, with exponential or karras.
    """
    return _third_order(model, x, sigmas, noise, [eta] * (len(sigmas) - 1), s_noise)


@sampler(
    "dpmpp_3m_sde_dynamic_eta",
    aliases=("SamplerDPMPP_3M_SDE_DynETA",),
    paper="ComfyUI-Extra-Samplers, no paper",
    stochastic=True,
    noise="brownian",
    ranges={
        "eta_max": Range(0, 10),
        "eta_min": Range(0, 10),
        "s_noise": Range(0, 10),
        "noise_kind": Choice(NOISES),
    },
)
def dpmpp_3m_sde_dynamic_eta(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    eta_max: float = 1.0,
    eta_min: float = 0.0,
    s_noise: float = 1.0,
    noise_kind: str = "brownian",
) -> Any:
    """dpmpp_3m_sde whose noise fades along a cosine; lively early, settled late.

    ηᵢ = η_min + ½(η_max − η_min)(1 + cos(π i / N)): order 2 where η is 0, one evaluation a step, a
    draw where ηᵢ > 0.
    Choose it where dpmpp_3m_sde leaves grain.
    """
    steps = len(sigmas) - 1
    swing = (eta_max - eta_min) / 2
    etas = [eta_min + swing * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    return _third_order(model, x, sigmas, noise, etas, s_noise)
