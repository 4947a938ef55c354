"""What runs on a GPU are made of: the GPU as they need it, graphs that are kept, tensors that the
host fills."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from ..tensors import Tensor
from .cuda import Run


class Graph(Protocol):
    def launch(self) -> None: ...


class Mark(Protocol):
    def wait(self) -> None: ...


class Gpu(Protocol):
    """What is needed of `devices.cuda.Cuda`, whose words these are."""

    stream: int

    def free(self) -> int: ...
    def empty(self, shape: Sequence[int], dtype: str) -> Tensor: ...
    def pinned(self, shape: Sequence[int], dtype: str) -> Tensor: ...
    def upload(self, target: Tensor, source: Tensor) -> None: ...
    def download(self, target: Tensor, source: Tensor) -> None: ...
    def launch(self, kernel: str, blocks: int, threads: int, run: Run, row: int) -> None: ...
    def capture(self, enqueue: Callable[[], None]) -> Graph: ...
    def mark(self) -> Mark: ...
    def synchronize(self) -> None: ...


class Graphs:
    """The graphs captured last, of all plans, as many as `limit` bytes of the GPU hold."""

    def __init__(self, gpu: Gpu, limit: int = 1 << 30) -> None:
        self._gpu, self._limit = gpu, limit
        self._kept: dict[Hashable, tuple[Graph, int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def launch(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Enqueues what `enqueue` does: from the host the first time, which is what networks need
        before they can be captured, and from then on as a graph."""
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)  # the latest comes last
            self._kept[key][0].launch()
            return
        enqueue()
        self._gpu.synchronize()
        before = self._gpu.free()
        graph = self._gpu.capture(enqueue)
        self._kept[key] = graph, max(0, before - self._gpu.free())
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self._limit:
            self._kept.pop(next(iter(self._kept)))

    def forget(self, owner: object) -> None:
        """Drops the graphs whose keys begin with `owner`."""
        self._gpu.synchronize()
        for key in [k for k in self._kept if isinstance(k, tuple) and k[0] is owner]:
            del self._kept[key]


class Mirror:
    """A tensor of the GPU with its pinned copy, which the host fills."""

    def __init__(self, gpu: Gpu, shape: Sequence[int], dtype: str) -> None:
        self._gpu = gpu
        self.host, self.device = gpu.pinned(shape, dtype), gpu.empty(shape, dtype)

    def fill(self, values: array[Any] | Tensor) -> None:
        """Enqueues the copy of the values, which may be fewer than it holds."""
        source = memoryview(values).cast("B")
        memoryview(self.host).cast("B")[: len(source)] = source
        self.upload()

    def upload(self) -> None:
        self._gpu.upload(self.device, self.host)
