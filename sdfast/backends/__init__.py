"""Backends: each compiles a network of a bundle into an engine for one device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from .. import external_data
from ..devices.cuda import Cuda, Keep
from ..errors import BackendUnavailable, BundleError, nearest
from ..tensors import Tensor, TensorSpec

if TYPE_CHECKING:
    from ..floats import Array


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
        """Fixes addresses and shapes of every input and output; copies nothing. The tensors are of
        the device that the engine is of; there may be others among them."""

    def run(self, stream: int = 0) -> None:
        """Enqueues the network on its bound tensors, on the GPU's stream of that number. On a CPU
        it returns when they are written."""

    def close(self) -> None:
        """Frees what the engine holds; `bind` opens it again."""


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Options:
    """How networks are compiled and run.

    threads: of the CPU, 0 for one on each core
    precision: that they compute in: "auto" is the fastest that the device has
    throughput: rows are to be computed side by side, each by a core of its own, where a backend can
        (`run_rows`), and not by cores that share them for the lowest latency
    low_memory: memory is spared where that costs time
    keep: where compiled networks are kept
    gpu: that they run on, whose stream `run` is given; None for the CPU
    replaced: what gives other values for some of the graph's initializers, by their names and in
        their types (bfloat16 as its bits in uint16); asked each time that weights are read
    """

    threads: int = 0
    precision: str = "auto"
    throughput: bool = False
    low_memory: bool = False
    keep: Keep | None = None
    gpu: Cuda | None = None
    replaced: Callable[[], Mapping[str, Array]] | None = None


BACKENDS = {
    "cpu": ("openvino", "onnxruntime", "torch"),
    "cuda": ("torch", "onnxruntime", "tensorrt"),
}
"""The backends of each device, the faster first (docs/benchmarks.md and docs/gpu.md have the
figures), but for TensorRT, which runs nothing until `sdfast build` has made its engines. Each is a
module here with `reason_unusable`, `precision` and `open`."""


def usable(device: str = "cpu") -> dict[str, str | None]:
    """Each backend of a device, "cpu" or "cuda" → None where it can be used on this machine, else
    why not in one sentence."""
    return {name: _backend(name).reason_unusable(device) for name in BACKENDS[device]}


def version(backend: str) -> str:
    """Of the package that a backend is; "unknown" where it does not say."""
    try:
        return metadata.version(backend)
    except metadata.PackageNotFoundError:  # as of onnxruntime-gpu
        return str(getattr(sys.modules.get(backend), "__version__", "unknown"))


def choose(backend: str = "auto", device: str = "cpu") -> str:
    """The device's backend of that name, or for "auto" the first that is usable here.

    Raises BackendUnavailable for an unknown one, or with the reason why it cannot be used.
    """
    names = BACKENDS[device]
    if backend != "auto" and backend not in names:
        every = dict.fromkeys(name for of in BACKENDS.values() for name in of)
        if backend in every:
            raise BackendUnavailable(
                f"backend {backend} does not run on device {device}; use one of "
                f"{', '.join(('auto', *names))}"
            )
        raise BackendUnavailable(
            f"backend {backend!r} is unknown{nearest(backend, every)}; use one of "
            f"{', '.join(('auto', *names))}"
        )
    reasons = []
    for name in names if backend == "auto" else (backend,):  # no further: some take seconds
        reason = _backend(name).reason_unusable(device)
        if reason is None:
            return name
        reasons.append(reason)
    raise BackendUnavailable("; ".join(reasons))


def precision(backend: str, asked: str = "auto", device: str = "cpu") -> str:
    """What networks compute in, one of PRECISIONS but "auto", with a backend that `choose` gave.

    Raises BackendUnavailable where it, or this machine, does not compute in what is asked for.
    """
    if asked not in PRECISIONS:
        raise BackendUnavailable(
            f"precision {asked!r} is unknown{nearest(asked, PRECISIONS)}; use one of "
            f"{', '.join(PRECISIONS)}"
        )
    found: str = _backend(backend).precision(asked, device)
    return found


def open_engine(file: Path, backend: str = "auto", options: Options | None = None) -> Engine:
    """Compiles the ONNX file.

    Raises BackendUnavailable as `choose` and `precision` do, BundleError for a file that is no
    network.
    """
    options = options or Options()
    device = "cpu" if options.gpu is None else "cuda"
    opened: Callable[[Path, Options], Engine] = _backend(choose(backend, device)).open
    return opened(file, options)


def weights_of(file: Path) -> list[Path]:
    """The files that the graph points into.

    Raises BundleError where one leads out of its folder: whoever runs the graph opens it.
    """
    try:
        names = sorted(external_data.locations(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be run ({error}): export the bundle again") from error
    found, folder = [file.parent / name for name in names], file.parent.resolve()
    if odd := [weights for weights in found if not weights.resolve().is_relative_to(folder)]:
        raise BundleError(f"{file} cannot be run: {odd[0]} is outside of its folder")
    return found


def fitting(engine: Engine, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that the engine reads and writes. Raises ValueError for one of another type or rank."""
    found = {}
    for name, spec in {**engine.inputs, **engine.outputs}.items():
        tensor = found[name] = tensors[name]
        if tensor.dtype != spec.dtype or len(tensor.shape) != len(spec.shape):
            raise ValueError(
                f"{name} is {tensor.dtype} {tensor.shape}; the network takes {spec.dtype} "
                f"{spec.shape}"
            )
    return found


def first_line(error: Exception) -> str:
    """Of a message that goes on with where in the library it came from."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    return said[0] if said else type(error).__name__


def _backend(name: str) -> ModuleType:
    return import_module(f".{name}", __name__)
