"""--cache, as several commands take it: which evaluations run the whole U-Net."""

from __future__ import annotations

import click

from ..caching import AUTO, Cache
from ..errors import InvalidRequest


def evaluations(option: click.Parameter, text: str | None) -> Cache | str | None:
    """An interval (`3`, `auto`) or the numbers of evaluations (`0,1,3,6`, or one alone as `0,`)."""
    if text is None or text == AUTO:
        return text
    try:
        if "," in text:
            return tuple(int(part) for part in text.split(",") if part.strip())
        return int(text)
    except ValueError:
        raise InvalidRequest(
            f"{option.opts[0]} is {text!r}; it must be an interval, as 3 or auto, or the "
            "evaluations that run the whole network, as 0,1,3,6,10"
        ) from None
