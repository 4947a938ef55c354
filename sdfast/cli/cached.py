"""--cache, as several commands take it: which evaluations run the whole U-Net."""

from __future__ import annotations

import click

from ..errors import InvalidRequest

CACHE = 3  # what --cache alone means


def evaluations(option: click.Parameter, text: str | None) -> int | tuple[int, ...] | None:
    """An interval (`3`) or the numbers of evaluations (`0,1,3,6`, or one alone as `0,`)."""
    if text is None:
        return None
    try:
        if "," in text:
            return tuple(int(part) for part in text.split(",") if part.strip())
        return int(text)
    except ValueError:
        raise InvalidRequest(
            f"{option.opts[0]} is {text!r}; it must be an interval, as 3, or the evaluations that "
            "run the whole network, as 0,1,3,6,10"
        ) from None
