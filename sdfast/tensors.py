"""Tensors: memory on a device, and what an engine expects of it."""

from __future__ import annotations

from dataclasses import dataclass

from ._core import Tensor

__all__ = ["Tensor", "TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """Type ("f32", "f16", "i32", "i64" or "u8") and shape of an input or output; None where a side
    may vary."""

    dtype: str
    shape: tuple[int | None, ...]

    def empty(self, *sides: int) -> Tensor:
        """Uninitialised memory of that shape, `sides` in place of those that may vary, in order;
        there may be more of them than it takes."""
        varying = iter(sides)
        return Tensor.empty([next(varying) if s is None else s for s in self.shape], self.dtype)
