"""The values that the parameters of samplers and schedules may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InvalidRequest, nearest


@dataclass(frozen=True)
class Range:
    """The numbers a parameter may be, both ends included; only whole ones where `whole` is set."""

    low: float
    high: float
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a {'whole ' * self.whole}number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Choice:
    """The words a parameter may be."""

    words: tuple[str, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return "one of " + ", ".join(self.words)


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Listed:
    """A parameter that is a tuple of numbers, each in a range."""

    each: Range

    def __contains__(self, values: object) -> bool:
        return isinstance(values, tuple) and all(value in self.each for value in values)

    def __str__(self) -> str:
        return f"a tuple in which every value is {self.each}"


Allowed = Range | Choice | Flag | Listed

NOISES = ("gaussian", "uniform", "brownian", "pyramid", "highres-pyramid", "perlin", "laplacian")
"""The kinds of noise that a sampler may ask for."""


def check(owner: str, ranges: Mapping[str, Allowed], parameters: Mapping[str, Any]) -> None:
    """Raises InvalidRequest unless every parameter is one of `ranges` and within it.

    owner: whose they are, as the message names it
    """
    for name, value in parameters.items():
        if name not in ranges:
            raise InvalidRequest(
                f"{owner} has no parameter {name!r}{nearest(name, ranges)}; it has: "
                + (", ".join(ranges) or "none")
            )
        if value not in ranges[name]:
            raise InvalidRequest(f"{name} of {owner} is {value!r}; it must be {ranges[name]}")
