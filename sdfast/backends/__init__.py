"""Backends: each compiles a network of a bundle into an engine for one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        """Frees what the engine holds."""


BACKENDS = ("onnxruntime",)
"""Every backend, the preferred first. Each is a module here with `reason_unusable` and `open`."""


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


def open_engine(file: Path, backend: str = "auto", threads: int = 0) -> Engine:
    """Compiles the ONNX file. threads: of the CPU, 0 for one on each core.

    Raises BackendUnavailable as `choose` does, BundleError for a file that is no network.
    """
    opened: Callable[[Path, int], Engine] = _backend(choose(backend)).open
    return opened(file, threads)


def _backend(name: str) -> ModuleType:
    return import_module(f".{name}", __name__)
