"""OpenVINO on the CPU: networks compiled for the shapes that they are bound to, in bfloat16 where
the CPU computes in it, on memory that the pipeline holds."""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from .. import cpu
from ..errors import BackendUnavailable, BundleError, EngineError
from ..floats import Array
from ..tensors import Tensor, TensorSpec
from . import Options, first_line, fitting, weights_of

_DTYPES = ("f32", "f16", "i32", "i64", "u8")  # named alike there and here
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
_BLOB = "network.blob"
_SHAPES = 2  # compiled forms that an engine keeps: with the unguided rows and without
_SHAPES_IF_SMALL, _SMALL = 16, 64 << 20  # bytes of weights, which every form has anew

_ROWS = 0  # in place of a number of parts: rows, each by a core of its own
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def reason_unusable(device: str = "cpu") -> str | None:
    """None where OpenVINO can be imported and finds a CPU that it knows, else why not."""
    try:
        core = _core()
    except ImportError as error:
        return f'OpenVINO cannot be imported ({error}): pip install "sdfast[openvino]"'
    if "CPU" not in core.available_devices:
        return f"OpenVINO {_version()} does not know this CPU: use --backend onnxruntime"
    return None


def precision(asked: str, device: str = "cpu") -> str:
    """What `asked` means on this CPU. Raises BackendUnavailable where it cannot compute in that."""
    if asked == "fp16":
        raise BackendUnavailable("OpenVINO has no float16 on a CPU: use --precision bf16 or fp32")
    has_bf16 = "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if asked == "bf16" and not has_bf16:
        raise BackendUnavailable(
            "this CPU does not compute in bfloat16 (AVX-512 BF16 or AMX): use --precision fp32"
        )
    return ("bf16" if has_bf16 else "fp32") if asked == "auto" else asked


def open(file: Path, options: Options) -> OpenVinoEngine:  # noqa: A001
    """The network in `file`, to be compiled when it is bound."""
    return OpenVinoEngine(file, options)


class OpenVinoEngine:
    """A network, and what it was last compiled for."""

    capturable = False

    def __init__(self, file: Path, options: Options) -> None:
        self._file, self._options = file, options
        self._precision = precision(options.precision)
        self._weights = weights_of(file)
        small = sum(weights.stat().st_size for weights in self._weights) < _SMALL
        self._kept = 1 if options.low_memory else _SHAPES_IF_SMALL if small else _SHAPES
        model = _read(file)
        self.inputs, self.outputs = _specs(model.inputs), _specs(model.outputs)
        self._compiled: dict[tuple[Shapes, int], list[Any]] = {}  # requests, one for each part
        self._requests: list[Any] = []
        self._free: dict[Shapes, SimpleQueue[Any]] = {}  # requests that no thread has
        self._lock = Lock()
        self._bound: Mapping[str, Tensor] = {}

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        bound = fitting(self, tensors)
        parts = self._parts(bound)
        rows = next(iter(bound.values())).shape[0] // parts
        views = [
            {n: t if parts == 1 else t.rows(k * rows, (k + 1) * rows) for n, t in bound.items()}
            for k in range(parts)
        ]
        self._requests = []  # they hold what they are of
        with self._lock:
            self._requests = self._for(self._shapes(views[0]), parts)
        with self._failing():
            for request, view in zip(self._requests, views, strict=True):
                for name, tensor in view.items():
                    request.set_tensor(name, _shared(tensor))
        self._bound = bound  # requests know addresses alone: keep the memory alive

    def _parts(self, bound: Mapping[str, Tensor]) -> int:
        """How many equal parts the rows are computed in, side by side: at most two.

        Cores that work on rows of their own do not wait for each other after every layer: with the
        two halves of guidance a step of SD 1.5 takes 4 % less on 2 cores.
        """
        rows = {tensor.shape[0] for tensor in bound.values()}
        if len(rows) != 1:
            return 1
        threads, count = self._options.threads or cpu.cores(), rows.pop()
        most = min(threads, count, 2)
        return max(n for n in range(1, most + 1) if count % n == 0)

    def _for(self, shapes: Shapes, parts: int) -> list[Any]:
        """Requests of the network compiled for these shapes, `parts` of them to run side by side,
        or for `_ROWS` one for each core, which no others have; of what was compiled before the
        latest are kept."""
        key = shapes, parts
        if key in self._compiled:
            self._compiled[key] = self._compiled.pop(key)  # the latest comes last
        else:
            while len(self._compiled) >= self._kept:
                forgotten, by = oldest = next(iter(self._compiled))
                self._compiled.pop(oldest)
                if by == _ROWS:
                    self._free.pop(forgotten, None)
            count = parts or self._options.threads or cpu.cores()
            compiled = self._compile(shapes, count)
            self._compiled[key] = [compiled.create_infer_request() for _ in range(count)]
        return self._compiled[key]

    def _compile(self, shapes: Shapes, parts: int) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self._precision],
            "INFERENCE_NUM_THREADS": self._options.threads or cpu.cores(),
            "NUM_STREAMS": parts,
            "PERFORMANCE_HINT": "LATENCY" if parts == 1 else "THROUGHPUT",
            # What is written to the store points into the bundle's weights and holds none.
            "CACHE_MODE": "OPTIMIZE_SIZE",
        }
        weights, replaced = self._weights, self._options.replaced
        values = replaced() if replaced is not None else {}
        made: list[Any] = []

        def compiled() -> Any:
            model = _read(self._file)
            _replace(model, values)
            model.reshape({name: list(shape) for name, shape in shapes})
            return _core().compile_model(model, "CPU", settings)

        def build(folder: Path) -> None:
            made.append(compiled())
            (folder / _BLOB).write_bytes(made[0].export_model().getbuffer())

        try:
            with _given_back(weights):
                # With other values they would have to be kept as well, for every set of LoRA.
                if self._options.keep is None or len(weights) != 1 or values:
                    return compiled()
                key = {
                    "backend": "openvino",
                    "version": _version(),
                    "device": f"{cpu.model()}, {', '.join(cpu.features())}",
                    "shapes": repr(shapes),
                    **{name: str(value) for name, value in settings.items()},
                }
                folder = self._options.keep(key, build)
                if made or folder is None:
                    return made[0] if made else compiled()
                found = {**settings, "WEIGHTS_PATH": str(weights[0])}
                return _core().import_model((folder / _BLOB).read_bytes(), "CPU", found)
        except RuntimeError as error:
            raise BundleError(
                f"{self._file} cannot be compiled ({first_line(error)}): export the bundle again"
            ) from error

    def run(self, stream: int = 0) -> None:
        with self._failing():
            for request in self._requests:
                request.start_async()
            for request in self._requests:
                request.wait()

    def run_rows(self, rows: Mapping[str, Tensor], alone: bool) -> None:
        # Alone or not, each by itself and by one core: with others or by several it would be other
        # bits. Alone, other rows are computed by other cores meanwhile.
        fitted = fitting(self, rows)
        count, cores = next(iter(fitted.values())).shape[0], self._options.threads or cpu.cores()
        each = [{n: t.rows(k, k + 1) for n, t in fitted.items()} for k in range(count)]
        free, at_once = self._free_for(self._shapes(each[0])), cores if alone else 1
        for k in range(0, count, at_once):
            part = each[k : k + at_once]
            requests = [free.get() for _ in part]
            try:
                self._infer(requests, part)
            finally:
                for request in requests:
                    free.put(request)

    def _infer(self, requests: Sequence[Any], rows: Sequence[Mapping[str, Tensor]]) -> None:
        started, failed = list[Any](), None
        with self._failing():
            for request, row in zip(requests, rows, strict=True):
                for name, tensor in row.items():
                    request.set_tensor(name, _shared(tensor))
                request.start_async()
                started.append(request)
            for request in started:
                try:
                    request.wait()
                except RuntimeError as error:  # the others are waited for, whichever fail
                    failed = error
            if failed is not None:
                raise failed

    def _free_for(self, shapes: Shapes) -> SimpleQueue[Any]:
        """The requests for a row of these shapes that no core has."""
        with self._lock:
            free = self._free.get(shapes)
            requests = self._for(shapes, _ROWS)
            if free is None:
                self._free[shapes] = free = SimpleQueue()
                for request in requests:
                    free.put(request)
            return free

    def _shapes(self, tensors: Mapping[str, Tensor]) -> Shapes:
        return tuple((name, tuple(tensors[name].shape)) for name in self.inputs)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EngineError(
                f"{self._file.name} failed ({first_line(error)}): a smaller picture or fewer "
                "images need less memory"
            ) from error

    def close(self) -> None:
        with self._lock:
            self._requests = []
            self._free.clear()
            self._compiled.clear()
            self._bound = {}


@cache
def _core() -> Any:
    return import_module("openvino").Core()


def _version() -> str:
    return str(import_module("openvino").__version__)


def _read(file: Path) -> Any:
    try:
        return _core().read_model(str(file))
    except RuntimeError as error:
        raise BundleError(
            f"{file} cannot be run ({first_line(error)}): export the bundle again"
        ) from error


def _replace(model: Any, values: Mapping[str, Array]) -> None:
    """Gives initializers of the model other values, which are not copied."""
    openvino, opset = import_module("openvino"), import_module("openvino.opset13")
    constants = {
        operation.get_friendly_name(): operation
        for operation in (model.get_ops() if values else ())
        if operation.get_type_name() == "Constant"
    }
    for name, array in values.items():
        old = constants[name]
        tensor = openvino.Tensor(array, old.get_output_shape(0), old.get_output_element_type(0))
        old.output(0).replace(opset.constant(tensor).output(0))


def _shared(tensor: Tensor) -> Any:
    """The same memory as a tensor of OpenVINO, which takes it from NumPy's arrays alone."""
    import numpy as np

    return import_module("openvino").Tensor(np.asarray(tensor), shared_memory=True)


def _specs(ports: Any) -> dict[str, TensorSpec]:
    specs = {}
    for port in ports:
        dtype = port.get_element_type().get_type_name()
        if dtype not in _DTYPES:
            raise BundleError(f"{port.get_any_name()} is {dtype}: export the bundle again")
        sides = (s.get_length() if s.is_static else None for s in port.get_partial_shape())
        specs[port.get_any_name()] = TensorSpec(dtype, tuple(sides))
    return specs


@contextmanager
def _given_back(files: list[Path]) -> Iterator[None]:
    """Keeps the maps of weights out of memory while networks are compiled from them.

    OpenVINO maps the files and rewrites their values for the CPU: without this, a process is once
    as large as both. Pages that are given back stay in the system's cache, and come from there if
    they are read again.
    """
    if platform.system() != "Linux" or not files:
        yield
        return
    names, done = {str(file.resolve()) for file in files}, Event()

    def give_back() -> None:
        while not done.wait(0.05):
            _give_back(names)
        _give_back(names)

    thread = Thread(target=give_back, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _give_back(names: set[str]) -> None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in names and "w" not in fields[1]:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            _libc().madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED
            )


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
