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

    def sides(self, *varying: int) -> list[int]:
        """The shape with `varying` in place of the sides that may vary, in order; there may be more
        of them than it takes."""
        given = iter(varying)
        return [next(given) if side is None else side for side in self.shape]

    def empty(self, *varying: int) -> Tensor:
        """Uninitialised memory of that shape."""
        return Tensor.empty(self.sides(*varying), self.dtype)
