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
    dpm_solver,
    dpmpp,
    euler,
    momentum,
    multistep,
    runge_kutta,
    supreme,
    taylor,
    unipc,
)
from .registry import Sampler, check_sigmas, get, labelled_schedule, names, sampler

__all__ = [
    "Sampler",
    "ancestral",
    "check_sigmas",
    "consistency",
    "dpm_solver",
    "dpmpp",
    "euler",
    "get",
    "labelled_schedule",
    "momentum",
    "multistep",
    "names",
    "runge_kutta",
    "sampler",
    "supreme",
    "taylor",
    "unipc",
]
