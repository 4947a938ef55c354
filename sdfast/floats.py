"""Floating-point numbers of files as float32, and back.

NumPy has no bfloat16: an array of it holds its bits, as uint16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BFLOAT16 = np.dtype(np.uint16)


def widened(values: Array) -> NDArray[np.float32]:
    """The same numbers in float32; those that are in it already are not copied."""
    if values.dtype == BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, np.float32)


def rounded(values: NDArray[np.float32], dtype: np.dtype[Any]) -> Array:
    """The nearest numbers of that type, in C's order; of two as near, the even one.

    Raises OverflowError where one is infinite or NaN, or is so in that type.
    """
    if dtype == BFLOAT16:
        bits = np.ascontiguousarray(values).view(np.uint32)
        found = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        finite = np.isfinite(values).all() and np.isfinite(widened(found)).all()
    else:
        with np.errstate(over="ignore"):
            found = np.ascontiguousarray(values, dtype)
        finite = np.isfinite(found).all()
    if not finite:
        raise OverflowError(f"infinite or NaN in {name(dtype)}")
    return found


def name(dtype: np.dtype[Any]) -> str:
    """What the type is called."""
    return "bfloat16" if dtype == BFLOAT16 else dtype.name
