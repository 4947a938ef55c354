"""Backends: each compiles a network of a bundle into an engine for one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

from ..errors import BackendUnavailable, nearest
from ..tensors import Tensor, TensorSpec


class Engine(Protocol):
    """A compiled network."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def capturable(self) -> bool:
        """Whether `run` may be recorded into a CUDA graph."""
        ...

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Fixes addresses and shapes of every input and output; copies nothing."""

    def run(self, stream: int = 0) -> None:
        """Enqueues the network on its bound tensors. On a CPU it returns when they are written."""

    def close(self) -> None:
        """Frees what the engine holds; `bind` opens it again."""


Keep = Callable[[Mapping[str, str], Callable[[Path], None]], Path | None]
"""keep(key, build): the folder of a compiled network that is kept from one start to the next,
filled by build(folder) where there is none yet; None where nothing can be kept."""

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Options:
    """How networks are compiled and run.

    threads: of the CPU, 0 for one on each core
    precision: that they compute in: "auto" is the fastest that the device has
    throughput: rows are computed side by side, as many at once as there are cores, where a backend
        can; else cores share rows, for the lowest latency
    low_memory: memory is spared where that costs time
    keep: where compiled networks are kept
    """

    threads: int = 0
    precision: str = "auto"
    throughput: bool = False
    low_memory: bool = False
    keep: Keep | None = None


BACKENDS = ("openvino", "onnxruntime")
"""Every backend, the faster first (docs/benchmarks.md has the figures). Each is a module here with
`reason_unusable`, `precision` and `open`."""


def usable() -> dict[str, str | None]:
    """Each backend → None where it can be used on this machine, else why not in one sentence."""
    return {name: _backend(name).reason_unusable() for name in BACKENDS}


def choose(backend: str = "auto") -> str:
    """The backend of that name, or for "auto" the first that is usable here.

    Raises BackendUnavailable for an unknown one, or with the reason why it cannot be used.
    """
    if backend != "auto" and backend not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise BackendUnavailable(
            f"backend {backend!r} is unknown{nearest(backend, BACKENDS)}; use one of {known}"
        )
    reasons = {name: _backend(name).reason_unusable() for name in BACKENDS}
    name = backend if backend != "auto" else next((n for n in BACKENDS if not reasons[n]), "")
    if not name or reasons[name]:
        raise BackendUnavailable(reasons[name] if name else "; ".join(map(str, reasons.values())))
    return name


def precision(backend: str, asked: str = "auto") -> str:
    """What networks compute in, "fp32" or "bf16", with a backend that `choose` gave.

    Raises BackendUnavailable where it, or this machine, does not compute in what is asked for.
    """
    if asked not in PRECISIONS:
        raise BackendUnavailable(
            f"precision {asked!r} is unknown{nearest(asked, PRECISIONS)}; use one of "
            f"{', '.join(PRECISIONS)}"
        )
    found: str = _backend(backend).precision(asked)
    return found


def open_engine(file: Path, backend: str = "auto", options: Options | None = None) -> Engine:
    """Compiles the ONNX file.

    Raises BackendUnavailable as `choose` and `precision` do, BundleError for a file that is no
    network.
    """
    opened: Callable[[Path, Options], Engine] = _backend(choose(backend)).open
    return opened(file, options or Options())


def first_line(error: Exception) -> str:
    """Of a message that goes on with where in the library it came from."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    return said[0] if said else type(error).__name__


def _backend(name: str) -> ModuleType:
    return import_module(f".{name}", __name__)
