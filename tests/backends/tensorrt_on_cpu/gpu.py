"""The GPU's part: memory is the host's."""

from __future__ import annotations

from collections.abc import Sequence

from sdfast.tensors import Tensor


class Gpu:
    """As much of `devices.cuda.Cuda` as engines need."""

    stream, number, name, architecture = 7, 0, "Emulated GPU", "sm_90"

    def __init__(self, number: int = 0, keep: object = None) -> None:
        self.allocated: list[int] = []

    def empty(self, shape: Sequence[int], dtype: str) -> Tensor:
        made = Tensor.zeros(shape, dtype)
        self.allocated.append(made.nbytes)
        return made

    pinned = empty

    def upload(self, target: Tensor, source: Tensor) -> None:
        memoryview(target).cast("B")[:] = memoryview(source).cast("B")

    download = upload

    def synchronize(self) -> None:
        pass
