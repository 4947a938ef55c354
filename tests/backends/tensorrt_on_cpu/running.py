# ruff: noqa: A002 (TensorRT's own names)
"""From a plan to outputs: ONNX Runtime, on the addresses that it is told."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from backends.tensorrt_on_cpu.enums import (
    BuilderFlag,
    ExecutionContextAllocationStrategy,
    LayerInformationFormat,
)
from backends.tensorrt_on_cpu.gpu import Gpu
from backends.tensorrt_on_cpu.logger import ILogger, error, faults

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


def at(address: int, shape: Sequence[int], kind: str) -> np.ndarray[Any, Any]:
    dtype = np.dtype(TYPES[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        plan = json.loads(bytes(serialized_engine))
        if BuilderFlag.VERSION_COMPATIBLE in plan["flags"] and not self.engine_host_code_allowed:
            return error(self._logger, "host code is not allowed")
        return ICudaEngine(plan, self._logger)


class EngineInspector:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format == LayerInformationFormat.JSON
        layers: list[Any] = [
            {"Name": f"a{k}", "LayerType": "kgen", "TacticName": "_gemm_mha_v2_0x01"}
            for k in range(self._plan["attentions"])
        ]
        layers.append({"Name": "conv", "LayerType": "CaskConvolution", "TacticName": "sm80"})
        names = [layer["Name"] for layer in layers]
        return json.dumps({"Layers": layers if self._plan["detailed"] else names})


class ICudaEngine:
    def __init__(self, plan: dict[str, Any], logger: ILogger) -> None:
        self._plan, self._logger = plan, logger
        self.device_memory_size_v2 = 1 << 20
        self._model = onnx.load(plan["file"])
        self._stripped = BuilderFlag.STRIP_PLAN in plan["flags"]
        self._load()

    def _load(self) -> None:
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # there are many of them: none may wait by spinning
        self._session = onnxruntime.InferenceSession(
            self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @property
    def refittable(self) -> bool:
        return bool({BuilderFlag.REFIT, BuilderFlag.REFIT_IDENTICAL} & set(self._plan["flags"]))

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._plan)

    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC,
    ) -> IExecutionContext:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._inputs = {i.name: i for i in engine._session.get_inputs()}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}
        self._memory = (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        allowed = self._engine._plan["profile"].get(name)
        if allowed is not None:
            for low, side, high in zip(allowed[0], shape, allowed[2], strict=True):
                if not low <= side <= high:
                    error(self._engine._logger, f"{name} is out of the profile")
                    return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._inputs if name not in self._shapes]
        if not missing:
            zeros = {n: np.zeros(s, TYPES[self._inputs[n].type]) for n, s in self._shapes.items()}
            found = self._engine._session.run(None, zeros)
            names = [o.name for o in self._engine._session.get_outputs()]
            self._outputs = {n: v.shape for n, v in zip(names, found, strict=True)}
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name) or self._outputs[name]

    def update_device_memory_size_for_shapes(self) -> int:
        return sum(int(np.prod(s)) for s in self._shapes.values())

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = memory, size

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == Gpu.stream
        assert self._memory[1] >= self.update_device_memory_size_for_shapes()
        assert not self._engine._stripped, "it has no weights"
        if "failing" in faults:
            error(self._engine._logger, "out of memory")
            return False
        if "slow" in faults:
            time.sleep(0.2)
        # What a network works on lies in the shared block.
        ctypes.memset(self._memory[0], 0xAB, self._memory[1])
        session = self._engine._session
        feed = {n: at(self._addresses[n], s, self._inputs[n].type) for n, s in self._shapes.items()}
        names = [o.name for o in session.get_outputs()]
        for output, value in zip(session.get_outputs(), session.run(names, feed), strict=True):
            target = at(self._addresses[output.name], value.shape, output.type)
            target[...] = value
            if "wrong" in faults:
                target[...] = target[..., ::-1]
            if "infinite" in faults and target.dtype == np.float32:
                target.flat[0] = np.inf
        return True
