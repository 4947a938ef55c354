"""Records: plain data of JSON as frozen dataclasses, strictly.

A dataclass takes exactly its fields, of which those with a default may be missing; a number is no
bool and a float may be written as a whole number; nothing is converted otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


def parsed(kind: Any, raw: Any, where: str = "") -> Any:
    """`raw` as `kind`: a dataclass, dict, tuple or plain type, or one of them or None. Raises
    ValueError with the place, as "sizes.width is str"; `where` is the place of `raw` itself."""
    origin = get_origin(kind)
    if origin is UnionType:
        (kind,) = (k for k in get_args(kind) if k is not NoneType)
        return None if raw is None else parsed(kind, raw, where)
    if hasattr(kind, "__dataclass_fields__"):
        return _record(kind, raw, where)
    if origin is dict and isinstance(raw, dict):
        values = get_args(kind)[1]
        return {key: parsed(values, value, f"{where}.{key}") for key, value in raw.items()}
    if origin is tuple and isinstance(raw, list):
        return tuple(parsed(get_args(kind)[0], value, where) for value in raw)
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if origin in (dict, tuple) or type(raw) is not kind:
        raise ValueError(f"{_place(where)} is {type(raw).__name__}")
    return raw


def _record(kind: Any, raw: Any, where: str) -> Any:
    wanted = [f.name for f in fields(kind)]
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    if not isinstance(raw, dict) or not needed <= set(raw) <= set(wanted):
        given = raw if isinstance(raw, dict) else {}
        odd = sorted((needed - set(given)) | (set(given) - set(wanted)))
        raise ValueError(f"{_place(where)} lacks or has too many of {odd}")
    hints = get_type_hints(kind)
    make: Callable[..., Any] = kind
    return make(**{n: parsed(hints[n], raw[n], f"{where}.{n}") for n in wanted if n in raw})


def _place(where: str) -> str:
    return where.lstrip(".") or "the file"
