"""Values of a request: each checked against what is allowed, with a sentence that says so."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import Any

from .bundle import Sizes
from .errors import InvalidRequest

_LARGEST = sys.float_info.max
_SURROGATE = re.compile("[\ud800-\udfff]")


def by_name(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(f"{name} is {value!r}; it must be values by name, as {{'eta': 0.5}}")
    return dict(value)


def sequence(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise InvalidRequest(f"{name} is {value!r}; it must be a list of numbers")
    return tuple(value)


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text; it is {type(value).__name__}")
    if half := _SURROGATE.search(value):
        raise InvalidRequest(
            f"{name}, column {half.start() + 1}: half of a surrogate pair is no character"
        )
    return value


def whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    return value


def real(value: object) -> float:
    """The finite number that a value is; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        return math.nan
    return float(value)


def number(name: str, value: object, low: int, high: int) -> float:
    found = real(value)
    if not low <= found <= high:
        raise InvalidRequest(f"{name} is {value!r}; it must be a number from {low} to {high}")
    return found


def interval(name: str, value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = value if isinstance(value, tuple | list) and len(value) == 2 else (None, None)
    low, high = map(real, pair)
    if not 0 <= low < high:
        raise InvalidRequest(
            f"{name} is {value!r}; it must be two noise levels (low, high) with 0 <= low < high"
        )
    return low, high


def side(name: str, value: object, sizes: Sizes, most: int = 0) -> int:
    """A side of a picture in pixels, as the bundle draws them, or up to `most` where that is more.

    Raises InvalidRequest.
    """
    low, high, multiple = sizes.minimum, max(sizes.maximum, most), sizes.multiple
    found = whole(name, value, low, high)
    if found % multiple:
        below, above = found // multiple * multiple, -(-found // multiple) * multiple
        fitting = [str(s) for s in (below, above) if low <= s <= high]
        raise InvalidRequest(
            f"{name} is {found}; it must be a multiple of {multiple} pixels: try "
            + " or ".join(fitting)
        )
    return found


def generator(value: Any) -> dict[str, Any]:
    """seed and rng of a torch.Generator."""
    if value is None:
        return {}
    try:
        on_cpu = str(value.device).startswith("cpu")
        return {"seed": int(value.initial_seed()), "rng": "torch" if on_cpu else "philox"}
    except AttributeError:
        raise InvalidRequest(
            f"generator is {type(value).__name__}; it must be one torch.Generator: for several"
            " images give seed and count"
        ) from None
