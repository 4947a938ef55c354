"""Samplers: one small pure function each, by name.

    s = samplers.get("DPM++ 2M")            # name or alias, any case
    x = s.sample(model, x, sigmas, noise)   # with NumPy or torch arrays: the reference

Every sampler works in sigma space, x = x₀ + σ ε, on anything that adds and scales:
model(x, sigma) → denoised D of x's shape; noise(sigma, sigma_next) → a unit-normal draw of x's
shape, made for the interval between the two noise levels.
"""

from __future__ import annotations

from . import (
    ancestral,
    consistency,
    dpm,
    dpm_solver,
    euler,
    momentum,
    multistep,
    runge_kutta,
    supreme,
    taylor,
    unipc,
)
from .registry import NOISES, Sampler, check_sigmas, get, names, sampler

__all__ = [
    "NOISES",
    "Sampler",
    "ancestral",
    "check_sigmas",
    "consistency",
    "dpm",
    "dpm_solver",
    "euler",
    "get",
    "momentum",
    "multistep",
    "names",
    "runge_kutta",
    "sampler",
    "supreme",
    "taylor",
    "unipc",
]
