"""What a schedule is to the rest of the program, and where it is found by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequest, UnknownSchedule, nearest
from ..ranges import Allowed, check
from .noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class Schedule:
    """A way to choose noise levels.

    function: f(steps, ns, **parameters) → the levels above 0, descending
    ranges: parameter → the values it may take
    """

    name: str
    function: Callable[..., Sequence[float]]
    aliases: tuple[str, ...]
    ranges: Mapping[str, Allowed]


CLOSEST = 1e-6  # of a level: nearer neighbours are one, since a step between them does nothing

_SCHEDULES: dict[str, Schedule] = {}
_ALIASES: dict[str, str] = {}


def schedule(
    *aliases: str, **ranges: Allowed
) -> Callable[[Callable[..., Sequence[float]]], Callable[..., Sequence[float]]]:
    """Registers the function below it under its own name and the aliases."""

    def register(function: Callable[..., Sequence[float]]) -> Callable[..., Sequence[float]]:
        name = function.__name__
        _SCHEDULES[name] = Schedule(name, function, aliases, ranges)
        for word in (name, *aliases):
            if _ALIASES.setdefault(_key(word), name) != name:
                raise TypeError(f"schedule {name}: {word!r} is {_ALIASES[_key(word)]} already")
        return function

    return register


def parameters(name: str) -> dict[str, Any]:
    """The parameters of a schedule and their defaults."""
    arguments = list(inspect.signature(_SCHEDULES[get(name)].function).parameters.values())[2:]
    return {a.name: a.default for a in arguments}


def ranges(name: str) -> Mapping[str, Allowed]:
    """The values that a schedule's parameters may take."""
    return _SCHEDULES[get(name)].ranges


def aliases(name: str) -> tuple[str, ...]:
    """What other programs call a schedule."""
    return _SCHEDULES[get(name)].aliases


def names() -> tuple[str, ...]:
    """The canonical names, in alphabetical order."""
    return tuple(sorted(_SCHEDULES))


def get(name: str) -> str:
    """The canonical name of the schedule that ComfyUI, A1111 or diffusers calls `name`: any case,
    spaces and hyphens as underscores. Raises UnknownSchedule with the nearest."""
    if _key(name) not in _ALIASES:
        raise UnknownSchedule(
            f"schedule {name!r} is unknown{nearest(_key(name), _ALIASES)}; known: "
            + ", ".join(names())
        )
    return _ALIASES[_key(name)]


def sigmas(name: str, steps: int, ns: NoiseSchedule, **parameters: Any) -> tuple[float, ...]:
    """The noise levels of a run, strictly descending, and a final 0.

    name: a schedule's name or alias
    steps: 1…T. That many levels come before the 0, except for ddim_uniform, which may give more
        or fewer, and where neighbours all but coincide (beta from some 150 steps): a run's steps
        are len(sigmas) − 1
    parameters: the schedule's own, by name

    Raises UnknownSchedule, or InvalidRequest for steps and parameters out of their range.
    """
    found = _SCHEDULES[get(name)]
    count = len(ns.sigmas)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= count:
        raise InvalidRequest(f"steps is {steps!r}; it must be a whole number from 1 to {count}")
    check(f"schedule {found.name}", found.ranges, parameters)
    levels = list[float]()
    for level in found.function(steps, ns, **parameters):
        if not levels or level <= levels[-1] * (1 - CLOSEST):
            levels.append(level)
    return (*levels, 0.0)


def discard_penultimate(sigmas: Sequence[float]) -> tuple[float, ...]:
    """The sigmas, at least two, without the last but one: the smallest above 0.

    ComfyUI builds a schedule of steps + 1 and does this for dpm_2, uni_pc and their kin, whose
    last step gains nothing from so small a level.
    """
    if len(sigmas) < 3:
        raise ValueError(
            f"{len(sigmas)} sigmas have no penultimate one to discard; it takes 3 or more"
        )
    return (*sigmas[:-2], sigmas[-1])


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
