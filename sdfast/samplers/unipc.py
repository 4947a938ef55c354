"""UniPC: a predictor and a corrector that shares the predictor's evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .registry import sampler


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """The solution of a small linear system, by Gauss's elimination with pivots."""
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    size = len(rows)
    for k in range(size):
        pivot = max(range(k, size), key=lambda r: abs(rows[r][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for r in range(size):
            if r != k:
                factor = rows[r][k] / rows[k][k]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[k], strict=True)]
    return [rows[k][size] / rows[k][k] for k in range(size)]


def _weights(ratios: Sequence[float], h: float, b: float) -> list[float]:
    """ρ of R ρ = β (eqs. 13 and 14): R = powers of the ratios rⱼ, βⱼ = j! φⱼ₊₁(−h)(−h)… / B."""
    z = -h
    g, rights = math.expm1(z) / z - 1, []
    for j in range(1, len(ratios) + 1):
        rights.append(g * math.factorial(j) / b)
        g = g / z - 1 / math.factorial(j + 1)
    powers = [[r**j for r in ratios] for j in range(len(ratios))]
    return _solved(powers, rights)


def _bent(
    x: Any, rhos: Sequence[float], ratios: Sequence[float], values: Sequence[Any], b: float
) -> Any:
    """x − B Σ ρⱼ (D₋ⱼ − D₀) / rⱼ."""
    for rho, r, value in zip(rhos, ratios, values[1:], strict=False):
        x = x - b * rho / r * (value - values[0])
    return x


def _uni_pc(model: Any, x: Any, sigmas: Any, variant: str) -> Any:
    """UniPC of order 3 with data prediction (algorithms 1 and 2, eqs. 9 and 10)."""
    steps = len(sigmas) - 1
    if steps == 1 and sigmas[1] == 0:
        return model(x, sigmas[0])
    # The method works in ln σ: it ends just above 0.
    ends = [*sigmas[:-1], sigmas[-1] or min(0.001, sigmas[-2] / 2)]
    top = min(3, steps - 1)
    values, levels = [model(x, ends[0])], [ends[0]]
    for k in range(1, steps + 1):
        order = k if k < top else max(min(top, steps + 1 - k), 1)
        s, t = ends[k - 1], ends[k]
        h = math.log(s / t)
        e = math.expm1(-h)
        b = -h if variant == "bh1" else e
        base = t / s * x - e * values[0]
        ratios = [-math.log(level / s) / h for level in levels[1:order]]
        # Two points leave ρ = ½ where the system's own value differs by O(h).
        ahead = [0.5] if order == 2 else _weights(ratios, h, b) if ratios else []
        x = _bent(base, ahead, ratios, values, b)
        if k == steps:
            return x
        newest = model(x, t)
        *rhos, last = [0.5] if order == 1 else _weights([*ratios, 1.0], h, b)
        x = _bent(base, rhos, ratios, values, b) - b * last * (newest - values[0])
        values, levels = [newest, *values][:3], [t, *levels][:3]
    return x


@sampler(
    "uni_pc",
    aliases=("UniPC", "unipc", "k_unipc", "UniPCMultistepScheduler"),
    paper="arXiv:2302.04867",
    drops_penultimate=True,
)
def uni_pc(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
    """UniPC with B₁(h) = h: predictor and corrector from the same evaluations.

    Zhao et al. 2023: order 3 but for its last steps, which are of order 2 and 1; one evaluation a
    step, no noise; a schedule that ends in 0 is followed to 0.001. Choose it from 20 steps on.
    """
    return _uni_pc(model, x, sigmas, "bh1")


@sampler(
    "uni_pc_bh2",
    aliases=("UniPC BH2", "unipc_bh2"),
    paper="arXiv:2302.04867",
    drops_penultimate=True,
)
def uni_pc_bh2(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
    """UniPC with B₂(h) = eʰ − 1: steadier under strong guidance.

    Zhao et al. 2023: order 3 but for its last steps, which are of order 2 and 1; one evaluation a
    step, no noise; a schedule that ends in 0 is followed to 0.001. Choose it from 20 steps on.
    """
    return _uni_pc(model, x, sigmas, "bh2")
