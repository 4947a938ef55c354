"""ONNX Runtime on the CPU or an NVIDIA GPU, with inputs and outputs bound to memory that the
pipeline holds."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from .. import cpu, external_data
from ..devices.cuda import Cuda
from ..errors import BackendUnavailable, BundleError, EngineError
from ..floats import Array
from ..graph_weights import ELEMENTS
from ..tensors import Tensor, TensorSpec
from . import Options, first_line, fitting

# ONNX's element types (TensorProto.DataType), and the names that ONNX Runtime gives them.
_ELEMENTS = {"f32": 1, "u8": 2, "i32": 6, "i64": 7, "f16": 10}
_NAMES = {
    "tensor(float)": "f32",
    "tensor(uint8)": "u8",
    "tensor(int32)": "i32",
    "tensor(int64)": "i64",
    "tensor(float16)": "f16",
}
_ERRORS_ONLY = 3
_OPTIMIZED, _WEIGHTS = "network.onnx", "network.weights"
_WORTH_KEEPING = 64 << 20  # bytes of weights; smaller networks are optimized in milliseconds


def reason_unusable(device: str = "cpu") -> str | None:
    """None where ONNX Runtime can be imported and has a provider for the device, else why not."""
    try:
        runtime = import_module("onnxruntime")
    except ImportError as error:
        return f"ONNX Runtime cannot be imported ({error}): pip install onnxruntime"
    if device == "cuda" and "CUDAExecutionProvider" not in runtime.get_available_providers():
        return (
            "this ONNX Runtime has no CUDA provider: pip uninstall onnxruntime, then pip install "
            "onnxruntime-gpu"
        )
    return None


def precision(asked: str, device: str = "cpu") -> str:
    """Always "fp32": it computes in the types that the graph has. Raises BackendUnavailable for
    another."""
    if asked in ("bf16", "fp16"):
        other = "openvino" if device == "cpu" else "torch"
        raise BackendUnavailable(
            f"ONNX Runtime computes in the types of the graph: export the bundle with --precision "
            f"{asked}, or use --precision fp32 or --backend {other}"
        )
    return "fp32"


def open(file: Path, options: Options) -> OnnxRuntimeEngine:  # noqa: A001
    """The network in `file`, compiled."""
    return OnnxRuntimeEngine(file, options)


@dataclass(frozen=True)
class _Session:
    """A session and the values that it reads, which neither it nor they copy: whoever runs it holds
    both."""

    session: Any
    values: tuple[Any, ...] = ()


class OnnxRuntimeEngine:
    """A session and one binding; `run` calls it and does nothing else.

    On a GPU it runs on the pipeline's stream and waits for nothing. What it enqueues depends on
    its arena and its own tables, so that it can be no part of another's graph.
    """

    capturable = False

    def __init__(self, file: Path, options: Options) -> None:
        precision(options.precision)
        self._file, self._options = file, options
        self._single: _Session | None = None  # of one thread, by which rows run side by side
        self._lock = Lock()
        opened = self._open()
        self._session: _Session | None = opened
        self.inputs = _specs(opened.session.get_inputs())
        self.outputs = _specs(opened.session.get_outputs())
        self._binding: Any = None
        self._bound: Mapping[str, Tensor] = {}

    def _open(self, threads: int | None = None) -> _Session:
        options = self._options if threads is None else replace(self._options, threads=threads)
        arrays = options.replaced() if options.replaced is not None else {}
        try:
            if not arrays:
                return _Session(_opened(self._file, options))
            settings, values = _settings(options), [_value(array) for array in arrays.values()]
            settings.add_external_initializers(list(arrays), values)
            session = _session(self._file, settings, *_on_gpu(options.gpu))
            return _Session(session, (*arrays.values(), *values))
        except Exception as error:  # its exceptions share no base of their own
            raise BundleError(
                f"{self._file} cannot be run ({first_line(error)}): export the bundle again"
            ) from error

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        if self._session is None:  # it was closed
            self._session = self._open()
        self._binding = self._bind(self._session, tensors)
        self._bound = dict(tensors)  # the binding knows addresses alone: keep the memory alive

    def _bind(self, opened: _Session, tensors: Mapping[str, Tensor]) -> Any:
        binding = opened.session.io_binding()
        for name, tensor in fitting(self, tensors).items():
            bound = binding.bind_input if name in self.inputs else binding.bind_output
            kind = _ELEMENTS[tensor.dtype]
            device, _, number = tensor.device.partition(":")
            bound(name, device, int(number or 0), kind, list(tensor.shape), tensor.pointer)
        return binding

    def run(self, stream: int = 0) -> None:
        assert self._session is not None
        self._run(self._session, self._binding)

    def _run(self, opened: _Session, binding: Any) -> None:
        try:
            opened.session.run_with_iobinding(binding)
        except Exception as error:  # its exceptions share no base of their own
            raise EngineError(
                f"{self._file.name} failed ({first_line(error)}): a smaller picture or fewer "
                "images need less memory"
            ) from error

    def run_rows(self, rows: Mapping[str, Tensor], alone: bool) -> None:
        if alone:  # the same bits by all threads
            self.bind(rows)
            self.run()
            return
        with self._lock:
            self._single = opened = self._single or self._open(threads=1)
        self._run(opened, self._bind(opened, rows))

    def close(self) -> None:
        self._binding = self._session = self._single = None
        self._bound = {}


def _opened(file: Path, options: Options) -> Any:
    """A session on the network as optimized for this CPU, from the store where it is large.

    What is kept has every weight in the order that the kernels read it in, in a file that is
    mapped: it is opened in a quarter of the time, and processes share one copy of it in memory.
    """
    weights = [file.parent / name for name in external_data.locations(file.read_bytes())]
    if options.gpu is not None:
        return _session(file, _settings(options), *_on_gpu(options.gpu))
    if options.keep is None or sum(w.stat().st_size for w in weights) < _WORTH_KEEPING:
        return _session(file, _settings(options))

    def build(folder: Path) -> None:
        settings = _settings(options)
        settings.optimized_model_filepath = str(folder / _OPTIMIZED)
        for name, value in (
            ("session.optimized_model_external_initializers_file_name", _WEIGHTS),
            ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
            ("session.save_external_prepacked_constant_initializers", "1"),
        ):
            settings.add_session_config_entry(name, value)
        try:
            _session(file, settings)
        except Exception as error:  # its exceptions share no base: a full disk, or no network
            raise OSError(errno.EIO, first_line(error)) from error

    runtime = import_module("onnxruntime")
    key = {
        "backend": "onnxruntime",
        "version": runtime.__version__,
        "device": f"{cpu.model()}, {', '.join(cpu.features())}",
    }
    folder = options.keep(key, build)
    settings = _settings(options)
    if folder is None:
        return _session(file, settings)
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(folder / _OPTIMIZED, settings)


def _settings(options: Options) -> Any:
    settings: Any = import_module("onnxruntime").SessionOptions()
    settings.intra_op_num_threads = options.threads or cpu.cores()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _ERRORS_ONLY
    # The arena keeps what the largest run needed; without it memory goes back after each.
    settings.enable_cpu_mem_arena = not options.low_memory
    # Each session has threads of its own, which wait for work by spinning. Those of one network
    # would go on doing so on the cores that the next network, or another process, needs: a third
    # of a picture's time on 2 cores (benchmarks/results/spinning.json).
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


def _on_gpu(gpu: Cuda | None) -> list[tuple[str, dict[str, str]]]:
    """The CUDA provider, on the stream that all work goes to; none for the CPU."""
    if gpu is None:
        return []
    settings = {
        "device_id": str(gpu.number),
        "user_compute_stream": str(gpu.stream),
        "do_copy_in_default_stream": "1",
        "prefer_nhwc": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    }
    return [("CUDAExecutionProvider", settings)]


def _value(array: Array) -> Any:
    """An array as ONNX Runtime's value."""
    element = ELEMENTS[array.dtype]
    return import_module("onnxruntime").OrtValue.ortvalue_from_numpy_with_onnx_type(array, element)


def _session(file: Path, settings: Any, *gpu: tuple[str, dict[str, str]]) -> Any:
    providers = [*gpu, "CPUExecutionProvider"]  # the CPU for what a GPU's provider leaves to it
    return import_module("onnxruntime").InferenceSession(str(file), settings, providers=providers)


def _specs(nodes: Any) -> dict[str, TensorSpec]:
    return {
        node.name: TensorSpec(
            _NAMES[node.type], tuple(s if isinstance(s, int) else None for s in node.shape)
        )
        for node in nodes
    }
