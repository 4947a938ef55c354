"""The parameters of a request before they are one: as the text that the command line and CSV files
write, and one set of them laid over another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .caching import AUTO, Cache
from .errors import InvalidRequest
from .request import CUSTOM

# What a parameter takes the place of, in others than those that it is given with.
_REPLACED = {
    "sampler": ("sampler_parameters", "discard_penultimate"),
    "steps": ("sigmas",),
    "schedule": ("schedule_parameters", "sigmas"),
    "sigmas": ("steps", "schedule", "schedule_parameters"),
}


def overlaid(parameters: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with those that are given in their place, and without what hangs on the
    former ones: a sampler's own where another is given, steps where there are sigmas."""
    gone = {name for new in given for name in _REPLACED.get(new, ())}
    kept = {name: value for name, value in parameters.items() if name not in gone}
    if "sigmas" not in kept and kept.get("schedule") == CUSTOM:
        del kept["schedule"]
    return {**kept, **given}


@dataclass(frozen=True)
class Form:
    """How a parameter is written.

    read: its value; raises ValueError for a text of another form
    wanted: that form in words, after "it must be"
    several: the texts of a list with commas in between; None where a comma is part of one value
    """

    read: Callable[[str], Any]
    wanted: str
    several: Callable[[str], list[str]] | None = None


def read(name: str, text: str, called: str | None = None) -> Any:
    """The value of a request's parameter. called: what the message calls it.

    Raises InvalidRequest.
    """
    form = FORMS[name]
    try:
        return form.read(text.strip())
    except ValueError:
        raise InvalidRequest(f"{called or name} is {text!r}; it must be {form.wanted}") from None


def read_several(name: str, text: str, called: str | None = None) -> list[Any]:
    """The values of a list with commas in between; one where a comma is part of the value."""
    several = FORMS[name].several
    return [read(name, part, called) for part in ([text] if several is None else several(text))]


def named(texts: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE, each value a number, true or false where it reads as one, a tuple where commas
    are (one number as `5,`). Raises InvalidRequest."""
    return {name: _value(text) for name, text in _named_texts(texts).items()}


def named_several(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """NAME=A,B,…: the values that each is to have in turn."""
    return {name: tuple(map(_value, _parts(text))) for name, text in _named_texts(texts).items()}


def _named_texts(texts: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise InvalidRequest(f"parameter {text!r} must be NAME=VALUE, such as eta=0.5")
        if name in found:
            raise InvalidRequest(f"parameter {name} is given twice: once is enough")
        found[name] = value
    return found


def _value(text: str) -> Any:
    if "," in text:
        return tuple(map(_value, _parts(text)))
    for kind in (_flag, int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _cache(text: str) -> Cache | str:
    if text == AUTO:
        return text
    return tuple(map(int, _parts(text))) if "," in text else int(text)


def _caches(text: str) -> list[str]:
    """A list from 0 on names evaluations, and is one value: there is no interval of 0."""
    parts = _parts(text)
    return [text] if parts[:1] == ["0"] else parts


def _sides(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _second(text: str) -> dict[str, Any]:
    """A scale, what else a second pass has by name, or both."""
    first, *others = text.split()
    scale = {} if "=" in first else {"scale": float(first)}
    return {**scale, **named(others if scale else [first, *others])}


def _controls(text: str) -> list[dict[str, Any]]:
    """Of each control a bundle and its map, and what else it has by name."""
    return [_control(part) for part in text.split(";")]


def _control(text: str) -> dict[str, Any]:
    """The path of the map may hold spaces: it ends before the first NAME=VALUE."""
    bundle, equals, rest = text.strip().partition("=")
    first, *others = re.split(r" +(?=\w+=)", rest)
    if not (bundle and equals and first.strip()):
        raise ValueError(text)
    return {"bundle": bundle, "image": first.strip(), **named(others)}


_TEXT = Form(str, "text")
_WORD = Form(str, "a name", _parts)
_WHOLE = Form(int, "a whole number", _parts)
_NUMBER = Form(float, "a number", _parts)
_NUMBERS = Form(_numbers, "numbers with commas between")
_NAMED = Form(lambda text: named(text.split()), "NAME=VALUE, with spaces between several")

FORMS: Mapping[str, Form] = {
    "prompt": _TEXT,
    "negative_prompt": _TEXT,
    "steps": _WHOLE,
    "sampler": _WORD,
    "schedule": _WORD,
    "sampler_parameters": _NAMED,
    "schedule_parameters": _NAMED,
    "sigmas": _NUMBERS,
    "discard_penultimate": Form(_flag, "true or false"),
    "guidance": _NUMBER,
    "guidance_rescale": _NUMBER,
    "guidance_interval": _NUMBERS,
    "seed": _WHOLE,
    "width": _WHOLE,
    "height": _WHOLE,
    "count": _WHOLE,
    "rng": _WORD,
    "cache": Form(
        _cache,
        "an interval, as 3 or auto, or the evaluations that run the whole network, as 0,1,3,6,10",
        _caches,
    ),
    "image": _TEXT,
    "strength": _NUMBER,
    "denoise": _NUMBER,
    "resize": _WORD,
    "mask": _TEXT,
    "mask_blur": _NUMBER,
    "mask_margin": _WHOLE,
    "outpaint": Form(_sides, "pixels on the left, top, right and bottom, as 0,0,64,0"),
    "clip_skip": _WHOLE,
    "control": Form(
        _controls, "BUNDLE=MAP, as demo-control=map.png weight=0.8, with ; between several"
    ),
    "hires": Form(_second, "a scale and what else differs, as 2 strength=0.4 steps=10"),
}
"""Of every parameter of a Request."""
