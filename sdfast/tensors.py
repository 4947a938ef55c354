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

    def empty(self, rows: int, tokens: int) -> Tensor:
        """Uninitialised memory of `rows` rows; any other side that may vary is `tokens`."""
        sides = (tokens if side is None else side for side in self.shape[1:])
        return Tensor.empty((rows, *sides), self.dtype)
