"""Sigma schedules: which noise levels a sampler visits. Pure floats.

Σ_k = √((1 − ᾱ_k) / ᾱ_k) are the noise levels that the network was trained on, k = 0…T − 1
ascending (`NoiseSchedule`). A schedule picks the levels of a run from them, as ComfyUI defines it
where programs differ; trailing, leading and linspace are diffusers' timestep spacings.
"""

from . import curves, timesteps
from .noise_schedule import BETAS, NoiseSchedule
from .registry import (
    CLOSEST,
    aliases,
    discard_penultimate,
    get,
    names,
    parameters,
    ranges,
    sigmas,
)

__all__ = [
    "BETAS",
    "CLOSEST",
    "NoiseSchedule",
    "aliases",
    "curves",
    "discard_penultimate",
    "get",
    "names",
    "parameters",
    "ranges",
    "sigmas",
    "timesteps",
]
