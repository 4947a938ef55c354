"""A GPU's part, played by the CPU: the kernels of native/kernels.cu, compiled by the C++ compiler
and run for one element after the other, on memory of the host. A graph is the list of what would
have been enqueued."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from sdfast.devices.cuda import SOURCES, Run
from sdfast.tensors import Tensor

LOOPS = """
#include "kernels.cu"

using namespace sdfast;

static std::uint32_t row_of(const Run& run, std::uint32_t row) {
    return run.counter == nullptr ? row : *run.counter;
}

extern "C" {
void step(const Run* run, std::uint32_t row) {
    for (std::int64_t i = 0; i < run->images * run->image; ++i) take(*run, row_of(*run, row), i);
}
void sum_up(const Run* run, std::uint32_t row) {
    for (std::int64_t image = 0; image < run->images; ++image)
        for (std::int64_t lane = 0; lane < lanes; ++lane)
            add_up(*run, row_of(*run, row), image, lane);
}
void find_factors(const Run* run, std::uint32_t) {
    for (std::int64_t image = 0; image < run->images; ++image) divide(*run, image);
}
void advance(const Run* run, std::uint32_t) { *run->counter += 1; }
std::uint64_t size_of_run() { return sizeof(Run); }
std::uint64_t place_of_last() { return offsetof(Run, timesteps); }
}
"""


@cache
def kernels() -> ctypes.CDLL:
    """The kernels as functions of (run, row), each for all of its threads."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "loops.cpp"), Path(folder, "loops.so")
        source.write_text("#include <cstddef>\n" + LOOPS)
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-ffp-contract=off"]
        subprocess.run([*command, f"-I{SOURCES}", source, "-o", library], check=True)
        return ctypes.CDLL(str(library))


class Recorded:
    """A network that is recorded where its GPU is capturing, with the tensors it is bound to."""

    def __init__(self, network: object, gpu: OnCpu, capturable: bool = True) -> None:
        self.network, self._gpu, self.capturable = network, gpu, capturable
        self._tensors: Mapping[str, Tensor] = {}

    def bind(self, tensors: Mapping[str, Tensor], /) -> None:
        self._tensors = tensors

    def run(self, stream: int = 0) -> None:
        tensors = self._tensors

        def run() -> None:
            self.network.bind(tensors)  # type: ignore[attr-defined]
            self.network.run()  # type: ignore[attr-defined]

        self._gpu.enqueue(run)


class _Graph:
    def __init__(self, gpu: OnCpu, work: list[Callable[[], None]]) -> None:
        self._gpu, self.work = gpu, work

    def launch(self) -> None:
        self._gpu.launches += 1
        for run in self.work:
            run()


class _Mark:
    def wait(self) -> None:
        pass


class OnCpu:
    """`devices.graphs.Gpu`, with what was launched from the host counted.

    A graph is of 1 MiB.
    """

    stream, number = 7, 0

    def __init__(self) -> None:
        self._capturing: list[Callable[[], None]] | None = None
        self.launches = self.captures = 0

    def enqueue(self, work: Callable[[], None]) -> None:
        if self._capturing is None:
            self.launches += 1
            work()
        else:
            self._capturing.append(work)

    def free(self) -> int:
        return (1 << 40) - (self.captures << 20)

    def empty(self, shape: Sequence[int], dtype: str) -> Tensor:
        return Tensor.zeros(shape, dtype)

    pinned = empty

    def upload(self, target: Tensor, source: Tensor) -> None:
        assert self._capturing is None, "what differs from run to run is not of a graph"
        memoryview(target).cast("B")[:] = memoryview(source).cast("B")

    download = upload

    def launch(self, kernel: str, blocks: int, threads: int, run: Run, row: int) -> None:
        function = getattr(kernels(), kernel)
        self.enqueue(lambda: function(ctypes.byref(run), ctypes.c_uint32(row)))

    def capture(self, enqueue: Callable[[], None]) -> _Graph:
        self._capturing = work = []
        try:
            enqueue()
        finally:
            self._capturing = None
        self.captures += 1
        return _Graph(self, work)

    def mark(self) -> _Mark:
        return _Mark()

    def synchronize(self) -> None:
        assert self._capturing is None, "nothing waits while a graph is captured"
