"""Members of enums that our backend uses, by TensorRT's numbers."""

from __future__ import annotations

from enum import IntEnum


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
