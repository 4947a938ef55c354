# ruff: noqa: A002 (TensorRT's own names)
"""From a graph to a plan, which is a path and a profile."""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx
from backends.tensorrt_on_cpu.enums import (
    BuilderFlag,
    HardwareCompatibilityLevel,
    LayerType,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
)
from backends.tensorrt_on_cpu.logger import ILogger, error, faults


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


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
            return error(self._logger, "no fused kernel for an attention")
        if "unbuildable" in faults:
            return error(self._logger, "could not find any implementation")
        return json.dumps(
            {
                "file": network._file,
                "profile": config._profile._shapes if config._profile else {},
                "flags": sorted(config._flags),
                "attentions": len(attentions),
                "detailed": config.profiling_verbosity == ProfilingVerbosity.DETAILED,
            }
        ).encode()
