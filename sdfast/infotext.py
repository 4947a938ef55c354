"""Infotext: a request in the text form that A1111 writes into its pictures, and back.

    a small red circle
    Negative prompt: stripes
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, …

The prompt's lines, the negative one's, and a line of values, of which those with a comma, a colon,
a quote or a line's end are quoted as JSON. What A1111 has no word for is written besides, under
words of ours, and is read back as words that are not known: the chunk `sdfast` has all of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import samplers, schedules
from .errors import UnknownSampler, UnknownSchedule
from .request import Request

SAMPLERS = {
    "ddim": "DDIM",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpm_adaptive": "DPM adaptive",
    "dpm_fast": "DPM fast",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "uni_pc": "UniPC",
}
"""What A1111 calls samplers; others have no name there and keep their own."""

SCHEDULES = {
    "align_your_steps": "Align Your Steps",
    "beta": "Beta",
    "ddim_uniform": "DDIM",
    "exponential": "Exponential",
    "karras": "Karras",
    "kl_optimal": "KL Optimal",
    "normal": "Normal",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
}
"""The same of schedules."""

_UNNAMED_SCHEDULE = "normal"  # of texts from before A1111 named schedules
_RNGS = {"philox": "NV", "torch": "CPU"}
_NEGATIVE = "Negative prompt: "
_LINES = (
    "Prompt lines"  # of the prompt, told where a line of it looks like the negative one's first
)
# Names are bounded, so that no text takes long to search.
_PAIR = re.compile(r'(\w[\w \-/]{0,63}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_COUNT = re.compile("[0-9]{1,9}")
_FEWEST = 3  # pairs of a line of values; with fewer it is taken for a prompt's


@dataclass(frozen=True)
class Infotext:
    """What a text says.

    parameters: of Request, by name
    others: values that are no parameter, by A1111's words, as they stand, and those that are none
        that a request could have
    """

    parameters: Mapping[str, Any]
    others: Mapping[str, str]

    @property
    def model(self) -> str:
        """The name of the model; empty where there is none."""
        return self.others.get("Model", "")

    def request(self) -> Request:
        """The request that the text tells of; what it leaves open is open."""
        return Request.from_dict(self.parameters)


def write(request: Request, model: str, version: str) -> str:
    """The request as text. model: its bundle's name; version: of sdfast."""
    negative = f"\n{_NEGATIVE}{request.negative_prompt}" if request.negative_prompt else ""
    head = f"{request.prompt}{negative}"
    lines = request.prompt.count("\n") + 1
    told = _heads(head, None) == (request.prompt, request.negative_prompt)
    values = {
        "Steps": _number(request.steps),
        "Sampler": SAMPLERS.get(request.sampler or "", request.sampler),
        "Schedule type": SCHEDULES.get(request.schedule or "", request.schedule),
        "CFG scale": _number(request.guidance),
        "CFG rescale": _number(request.guidance_rescale or None),
        "CFG interval": "-".join(f"{s:g}" for s in request.guidance_interval or ()) or None,
        "Cache": None if request.cache == 1 else _plain(request.cache),
        **{k: _plain(v) for k, v in request.sampler_parameters.items()},
        **{k: _plain(v) for k, v in request.schedule_parameters.items()},
        "sigmas": None if request.sigmas is None else _plain(request.sigmas),
        "Seed": _number(request.seed),
        "Size": f"{request.width}x{request.height}" if request.width and request.height else None,
        "Model": model,
        "Denoising strength": _number(None if request.image is None else request.strength),
        "Clip skip": _number(request.clip_skip + 1 if request.clip_skip else None),
        **_second(request.hires),
        "RNG": _RNGS.get(request.rng, request.rng),
        _LINES: None if told else str(lines),
        "Version": f"sdfast {version}",
    }
    line = ", ".join(f"{k}: {_quoted(v)}" for k, v in values.items() if v is not None)
    return f"{head}\n{line}"


def read(text: str) -> Infotext:
    """What a text of A1111's form says. One that is of no form is all prompt."""
    prompt, negative, pairs = _parted(text)
    found: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    others = {}
    for name, value in pairs.items():
        try:
            found.update(_READ[name](value))
        except (KeyError, ValueError):
            others[name] = value
    _second_read(found, others)
    if "sampler" in found:
        found.setdefault("schedule", _UNNAMED_SCHEDULE)
    return Infotext(found, others)


def words(text: str) -> dict[str, str]:
    """What a text says by A1111's words, each as it stands there."""
    prompt, negative, pairs = _parted(text)
    return {"Prompt": prompt, _NEGATIVE.rstrip(": "): negative, **pairs}


def _parted(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative one, and the values by their words."""
    head, _, line = text.rstrip("\n").rpartition("\n")
    pairs = {name.strip(): _unquoted(value.strip()) for name, value in _PAIR.findall(line)}
    if len(pairs) < _FEWEST:
        head, pairs = text, {}
    lines = pairs.pop(_LINES, "")
    return *_heads(head, int(lines) if _COUNT.fullmatch(lines) else None), pairs


def _heads(head: str, lines: int | None) -> tuple[str, str]:
    """The prompt, of as many lines where that is known, and the negative one."""
    rows = head.split("\n")
    begin = _NEGATIVE.rstrip()
    if lines is None:
        lines = next((k for k, row in enumerate(rows) if row.startswith(begin)), len(rows))
    negative = "\n".join(rows[lines:])
    plain = negative.removeprefix(begin).removeprefix(" ")
    return "\n".join(rows[:lines]), plain


def _quoted(value: str) -> str:
    odd = value != value.strip() or any(c in value for c in ',:"\\\n')
    return json.dumps(value, ensure_ascii=False) if odd else value


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _number(value: float | None) -> str | None:
    """As short as can be, and the same number when it is read."""
    if value is None:
        return None
    return str(int(value)) if value == int(value) else repr(value)


def _plain(value: Any) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def _whole(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: int(text)}


def _real(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: float(text)}


def _sampler(text: str) -> dict[str, Any]:
    try:
        name = samplers.get(text).name
    except UnknownSampler:
        return {"sampler": text}
    schedule = samplers.labelled_schedule(text)
    return {"sampler": name} if schedule is None else {"sampler": name, "schedule": schedule}


def _schedule(text: str) -> dict[str, Any]:
    try:
        return {"schedule": schedules.get(text)}
    except UnknownSchedule:
        return {"schedule": text}


def _size(text: str) -> dict[str, Any]:
    width, _, height = text.partition("x")
    return {"width": int(width), "height": int(height)}


def _rng(text: str) -> dict[str, Any]:
    """A1111 draws on a GPU ("GPU"), the same numbers without one ("NV"), or on the CPU."""
    known = {"GPU": "philox", **{label: name for name, label in _RNGS.items()}}
    return {"rng": known.get(text, text)}


_READ: dict[str, Callable[[str], dict[str, Any]]] = {
    "Steps": _whole("steps"),
    "Sampler": _sampler,
    "Schedule type": _schedule,
    "CFG scale": _real("guidance"),
    "Seed": _whole("seed"),
    "Size": _size,
    "Denoising strength": _real("strength"),
    "Clip skip": lambda text: {"clip_skip": max(int(text) - 1, 0)},
    "RNG": _rng,
}

# A second pass: its parameter, A1111's word, and how it is read.
_HIRES: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("scale", "Hires upscale", float),
    ("steps", "Hires steps", int),
    ("guidance", "Hires CFG Scale", float),
    ("sampler", "Hires sampler", lambda text: _sampler(text)["sampler"]),
    ("schedule", "Hires schedule type", lambda text: _schedule(text)["schedule"]),
    ("prompt", "Hires prompt", str),
    ("negative_prompt", "Hires negative prompt", str),
)
_UPSCALER = "Hires upscaler"
_LATENT = "Latent"


def _second(hires: Mapping[str, Any] | None) -> dict[str, str | None]:
    """A second pass as A1111 tells it: its strength is the picture's."""
    if hires is None:
        return {}
    labels = {"sampler": SAMPLERS, "schedule": SCHEDULES}
    told = {
        word: labels.get(name, {}).get(value, value) if isinstance(value, str) else _number(value)
        for name, word, _ in _HIRES
        if (value := hires.get(name)) is not None
    }
    latent = hires.get("resize") == "latent"
    return {
        "Denoising strength": _number(hires.get("strength", hires.get("denoise"))),
        **told,
        _UPSCALER: _LATENT if latent else "Lanczos",
    }


def _second_read(found: dict[str, Any], others: dict[str, str]) -> None:
    """Moves what is of a second pass from both to `hires` of the first."""
    if "Hires upscale" not in others:
        return
    hires: dict[str, Any] = {}
    for name, word, as_value in _HIRES:
        if word in others:
            try:
                hires[name] = as_value(others[word])
            except ValueError:
                continue
            del others[word]
    if others.pop(_UPSCALER, "").startswith(_LATENT):
        hires["resize"] = "latent"
    if "strength" in found:
        hires["strength"] = found.pop("strength")
    found["hires"] = hires
