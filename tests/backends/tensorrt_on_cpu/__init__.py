"""TensorRT's part, played by ONNX Runtime on memory of the host: as much of the module as our
backend uses, under the rules that TensorRT's documentation has for the order of calls.

test_tensorrt_build.py compares its classes with the real bindings, so that it cannot know more than
they do. A plan is a path and a profile; `faults` makes engines wrong in the ways that the gate
refuses.
"""

from backends.tensorrt_on_cpu.building import (
    Builder,
    IAttention,
    IAttentionBoundaryLayer,
    IBuilderConfig,
    ILayer,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITimingCache,
    OnnxParser,
    ParserError,
)
from backends.tensorrt_on_cpu.enums import (
    BuilderFlag,
    DataType,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    LayerInformationFormat,
    LayerType,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    TensorLocation,
)
from backends.tensorrt_on_cpu.gpu import Gpu
from backends.tensorrt_on_cpu.logger import ILogger, faults
from backends.tensorrt_on_cpu.refitting import OnnxParserRefitter, Refitter, Weights
from backends.tensorrt_on_cpu.running import (
    EngineInspector,
    ICudaEngine,
    IExecutionContext,
    Runtime,
)

__version__ = "11.4.0.106"

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "EngineInspector",
    "ExecutionContextAllocationStrategy",
    "Gpu",
    "HardwareCompatibilityLevel",
    "IAttention",
    "IAttentionBoundaryLayer",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ITimingCache",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserRefitter",
    "ParserError",
    "ProfilingVerbosity",
    "Refitter",
    "Runtime",
    "TensorLocation",
    "Weights",
    "faults",
]
