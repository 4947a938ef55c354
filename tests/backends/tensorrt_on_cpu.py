# ruff: noqa: A002 (TensorRT's own names)
"""TensorRT's part, played by ONNX Runtime on memory of the host: as much of the module as our
backend uses, under the rules that TensorRT's documentation has for the order of calls.

test_tensorrt.py compares its classes with the real bindings, so that it cannot know more than they
do. A plan is a path and a profile; `faults` makes engines wrong in the ways that the gate refuses.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from sdfast.tensors import Tensor

__version__ = "11.4.0.106"

faults: set[str] = set()
"""Of "wrong", "infinite", "slow", "failing", "unbuildable" and "fused": all weights of a type are
refitted together."""


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


class DataType(IntEnum):
    FLOAT, HALF, INT32, INT64, UINT8 = 0, 1, 3, 8, 5


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    REFIT, STRIP_PLAN, REFIT_IDENTICAL, VERSION_COMPATIBLE = 2, 13, 14, 9


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class ProfilingVerbosity(IntEnum):
    LAYER_NAMES_ONLY, DETAILED = 0, 2


class HardwareCompatibilityLevel(IntEnum):
    NONE, AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = 0, 1, 2


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


class LayerInformationFormat(IntEnum):
    ONELINE, JSON = 0, 1


class TensorLocation(IntEnum):
    DEVICE, HOST = 0, 1


class LayerType(IntEnum):
    CONVOLUTION, ATTENTION_INPUT = 0, 51


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


def _error(logger: ILogger, text: str) -> None:
    logger.log(ILogger.Severity.ERROR, text)


class IAttention:
    decomposable = False


class ILayer:
    def __init__(self, type_: LayerType) -> None:
        self.type, self._attention = type_, IAttention()


class IAttentionBoundaryLayer(ILayer):
    @property
    def attention(self) -> IAttention:
        return self._attention


class INetworkDefinition:
    def __init__(self, logger: ILogger) -> None:
        self._logger, self._layers = logger, list[ILayer]()
        self._file: str | None = None

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return "somewhere"

    def node_operator(self) -> str:
        return "Det"


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    def parse_from_file(self, model: str) -> bool:
        graph = onnx.load(model, load_external_data=False).graph
        if any(node.op_type == "Det" for node in graph.node):
            self._errors.append(ParserError("no importer registered"))
            return False
        self._network._file = model
        for node in graph.node:
            attends = node.op_type == "Attention"
            kind = LayerType.ATTENTION_INPUT if attends else LayerType.CONVOLUTION
            self._network._layers.append(ILayer(kind))
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(
        self,
        input: str,
        min: Sequence[int],
        opt: Sequence[int],
        max: Sequence[int],
    ) -> None:
        self._shapes[input] = [list(min), list(opt), list(max)]


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data + b"."


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags: set[BuilderFlag] = set()
        self._profile: IOptimizationProfile | None = None
        self._cache: ITimingCache | None = None
        self.max_aux_streams, self.profiling_verbosity = 7, ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: IProgressMonitor | None = None
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None: ...

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profile = profile
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._data.strip(b"."):
            return False  # of another device
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition(self._logger)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        monitor = config.progress_monitor
        assert monitor is not None
        monitor.phase_start("Building", None, 2)
        for step in range(2):
            monitor.phase_start("Timing kernels", "Building", 4)
            for k in range(4):
                if not monitor.step_complete("Timing kernels", k):
                    return None
            monitor.phase_finish("Timing kernels")
            monitor.step_complete("Building", step)
        monitor.phase_finish("Building")
        attentions = [a for a in network._layers if a.type == LayerType.ATTENTION_INPUT]
        if not all(layer._attention.decomposable for layer in attentions):
            return _error(self._logger, "no fused kernel for an attention")
        if "unbuildable" in faults:
            return _error(self._logger, "could not find any implementation")
        return json.dumps(
            {
                "file": network._file,
                "profile": config._profile._shapes if config._profile else {},
                "flags": sorted(config._flags),
                "attentions": len(attentions),
                "detailed": config.profiling_verbosity == ProfilingVerbosity.DETAILED,
            }
        ).encode()


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        plan = json.loads(bytes(serialized_engine))
        if BuilderFlag.VERSION_COMPATIBLE in plan["flags"] and not self.engine_host_code_allowed:
            return _error(self._logger, "host code is not allowed")
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
                    _error(self._engine._logger, f"{name} is out of the profile")
                    return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._inputs if name not in self._shapes]
        if not missing:
            zeros = {n: np.zeros(s, _TYPES[self._inputs[n].type]) for n, s in self._shapes.items()}
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
            _error(self._engine._logger, "out of memory")
            return False
        if "slow" in faults:
            time.sleep(0.2)
        # What a network works on lies in the shared block.
        ctypes.memset(self._memory[0], 0xAB, self._memory[1])
        session = self._engine._session
        feed = {
            n: _at(self._addresses[n], s, self._inputs[n].type) for n, s in self._shapes.items()
        }
        names = [o.name for o in session.get_outputs()]
        for output, value in zip(session.get_outputs(), session.run(names, feed), strict=True):
            target = _at(self._addresses[output.name], value.shape, output.type)
            target[...] = value
            if "wrong" in faults:
                target[...] = target[..., ::-1]
            if "infinite" in faults and target.dtype == np.float32:
                target.flat[0] = np.inf
        return True


_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


def _at(address: int, shape: Sequence[int], kind: str) -> np.ndarray[Any, Any]:
    dtype = np.dtype(_TYPES[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class Weights:
    def __init__(self, type: DataType, ptr: int, count: int) -> None:
        kind = {DataType.FLOAT: "tensor(float)", DataType.HALF: "tensor(float16)"}[type]
        self._values = _at(ptr, [count], kind).copy()


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        self._engine = engine
        self._new: dict[str, Weights] = {}

    def get_all_weights(self) -> list[str]:
        return [i.name for i in self._engine._model.graph.initializer]

    def get_missing_weights(self) -> list[str]:
        every = self._engine._model.graph.initializer
        touched = {i.data_type for i in every if i.name in self._new}
        together = [i.name for i in every if i.data_type in touched and i.name not in self._new]
        return together if "fused" in faults else []

    def set_named_weights(self, name: str, weights: Weights, location: TensorLocation) -> bool:
        assert location == TensorLocation.HOST
        self._new[name] = weights
        return True

    def refit_cuda_engine(self) -> bool:
        for initializer in self._engine._model.graph.initializer:
            if initializer.name in self._new:
                values = self._new[initializer.name]._values.reshape(list(initializer.dims))
                initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
        self._engine._load()
        self._engine._stripped = False
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter = refitter
        self.num_errors = 0

    def refit_from_file(self, model: str) -> bool:
        return bool(onnx.load(model).graph.initializer)

    def get_error(self, index: int) -> ParserError:
        raise IndexError
