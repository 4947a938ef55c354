"""What A1111 calls samplers and schedules, and what it takes where a schedule is left to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .... import infotext, samplers, schedules

AUTOMATIC = "automatic"
"""A scheduler that is the sampler's own."""

_OWN: Mapping[str, str] = {
    "ddim": "ddim_uniform",
    "dpm_2": "karras",
    "dpm_2_ancestral": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_2s_ancestral": "karras",
    "dpmpp_3m_sde": "exponential",
    "dpmpp_sde": "karras",
    "plms": "ddim_uniform",
}
_OTHERS_OWN = "normal"
_HEUN = "heun"  # at the end of "DPM++ 2M SDE Heun": its solver


@dataclass(frozen=True)
class Sampling:
    """What a label and a scheduler stand for; None for what they leave open."""

    sampler: str | None = None
    schedule: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def sampling(label: str | None, scheduler: str | None) -> Sampling:
    """Of the fields sampler_name and scheduler. Raises UnknownSampler or UnknownSchedule."""
    automatic = (scheduler or "").strip().lower() in ("", AUTOMATIC)
    schedule = None if automatic else schedules.get(str(scheduler))
    if not label:
        return Sampling(schedule=schedule)
    named = samplers.labelled_schedule(label)
    plain = label.strip()[: -len(named)].strip() if named else label.strip()
    parameters = {}
    if plain.lower() == f"dpm++ 2m sde {_HEUN}":
        plain, parameters = plain[: -len(_HEUN)].strip(), {"solver_type": _HEUN}
    sampler = samplers.get(plain).name
    return Sampling(sampler, schedule or named or own_schedule(sampler), parameters)


def own_schedule(sampler: str) -> str:
    """The schedule that A1111 takes for a sampler where it is told none."""
    return _OWN.get(sampler, _OTHERS_OWN)


def sampler_label(name: str) -> str:
    """What A1111 calls a sampler; its own name where it has none there."""
    return infotext.SAMPLERS.get(name, name)


def schedule_label(name: str) -> str:
    """The same of a schedule."""
    return infotext.SCHEDULES.get(name, name)
