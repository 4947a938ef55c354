# ruff: noqa: A002 (TensorRT's own names)
"""Other weights in an engine that was built for it."""

from __future__ import annotations

import onnx
from backends.tensorrt_on_cpu.building import ParserError
from backends.tensorrt_on_cpu.enums import DataType, TensorLocation
from backends.tensorrt_on_cpu.logger import ILogger, faults
from backends.tensorrt_on_cpu.running import ICudaEngine, at
from onnx import numpy_helper


class Weights:
    def __init__(self, type: DataType, ptr: int, count: int) -> None:
        kind = {DataType.FLOAT: "tensor(float)", DataType.HALF: "tensor(float16)"}[type]
        self._values = at(ptr, [count], kind).copy()


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
