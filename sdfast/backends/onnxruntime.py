"""ONNX Runtime on the CPU, with inputs and outputs bound to memory that the pipeline holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import BundleError, EngineError
from ..tensors import Tensor, TensorSpec

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


def reason_unusable() -> str | None:
    """None where ONNX Runtime can be imported, else why not."""
    try:
        import_module("onnxruntime")
    except ImportError as error:
        return f"ONNX Runtime cannot be imported ({error}): pip install onnxruntime"
    return None


def open(file: Path, threads: int = 0) -> OnnxRuntimeEngine:  # noqa: A001
    """The network in `file`, compiled. threads: 0 for one on each core."""
    return OnnxRuntimeEngine(file, threads)


class OnnxRuntimeEngine:
    """A session on the CPU and one binding; `run` calls it and does nothing else."""

    capturable = False

    def __init__(self, file: Path, threads: int = 0) -> None:
        runtime: Any = import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Each session has threads of its own, which wait for work by spinning. Those of one network
        # would go on doing so on the cores that the next network needs: a third of a picture's time
        # on 2 cores (benchmarks/results/spinning.json).
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session: Any = runtime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base of their own
            raise BundleError(
                f"{file} cannot be run ({_first_line(error)}): export the bundle again"
            ) from error
        self.inputs = _specs(self._session.get_inputs())
        self.outputs = _specs(self._session.get_outputs())
        self._file = file
        self._binding: Any = None
        self._bound: Mapping[str, Tensor] = {}

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        binding = self._session.io_binding()
        for name, spec in {**self.inputs, **self.outputs}.items():
            tensor = tensors[name]
            if tensor.dtype != spec.dtype or len(tensor.shape) != len(spec.shape):
                raise ValueError(
                    f"{name} is {tensor.dtype} {tensor.shape}; the network takes {spec.dtype} "
                    f"{spec.shape}"
                )
            bound = binding.bind_input if name in self.inputs else binding.bind_output
            kind = _ELEMENTS[tensor.dtype]
            bound(name, "cpu", 0, kind, list(tensor.shape), tensor.pointer)
        self._binding = binding
        self._bound = dict(tensors)  # the binding knows addresses alone: keep the memory alive

    def run(self, stream: int = 0) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its exceptions share no base of their own
            raise EngineError(
                f"{self._file.name} failed ({_first_line(error)}): a smaller picture or fewer "
                "images need less memory"
            ) from error

    def close(self) -> None:
        self._binding = self._session = None
        self._bound = {}


def cores() -> int:
    """The CPU's cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _specs(nodes: Any) -> dict[str, TensorSpec]:
    return {
        node.name: TensorSpec(
            _NAMES[node.type], tuple(s if isinstance(s, int) else None for s in node.shape)
        )
        for node in nodes
    }
