"""Weights of TensorRT engines that are on the GPU already: put in, or replaced."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from .. import graph_weights
from ..errors import EngineError, nearest
from ..floats import Array
from ..tensors import Tensor
from .tensorrt_library import failed, library, log

if TYPE_CHECKING:
    import tensorrt as trt

# TensorRT's names of the types of tensors, and of ONNX's element types.
_TYPES = {"f32": "FLOAT", "f16": "HALF", "i32": "INT32", "i64": "INT64", "u8": "UINT8"}
_ELEMENTS = {1: "FLOAT", 10: "HALF", 16: "BF16"}


def replace(engine: trt.ICudaEngine, weights: Mapping[str, Tensor | Array], file: Path) -> None:
    """Gives the engine these weights, of the host's memory or the GPU's, by the graph's names, and
    those that it needs with them, as of layers that were fused, as they are in the bundle.

    file: the network's
    Raises EngineError for an engine that was not built refittable or has no such weights, or where
    others are needed with them that the bundle does not have by themselves.
    """
    trt = library()
    log().forget()
    if not engine.refittable:
        raise EngineError(
            f"the engine of {file.name} keeps its weights: build it anew with --refittable"
        )
    refitter = trt.Refitter(engine, log())
    known = refitter.get_all_weights()
    if unknown := [name for name in weights if name not in known]:
        raise EngineError(
            f"the engine of {file.name} has no weights {unknown[0]!r}"
            f"{nearest(unknown[0], known)}: refit with the names of the graph's initializers"
        )
    _set(refitter, weights, file)
    others: dict[str, Array] = {}  # they are read when the engine is refitted
    if missing := refitter.get_missing_weights():
        stored = {one.name: one for one in graph_weights.read(file.read_bytes())}
        others = {name: stored[name].values(file.parent) for name in missing if name in stored}
        _set(refitter, others, file)
    if missing := refitter.get_missing_weights():
        raise EngineError(
            f"the engine of {file.name} can take {', '.join(weights)} only together with "
            f"{', '.join(missing)}: refit all of them at once"
        )
    if not refitter.refit_cuda_engine():
        raise failed(file)


def _set(refitter: trt.Refitter, weights: Mapping[str, Tensor | Array], file: Path) -> None:
    trt = library()
    for name, values in weights.items():
        place = trt.TensorLocation.HOST
        if isinstance(values, Tensor):
            kind, pointer = _TYPES[values.dtype], values.pointer
            if values.device.startswith("cuda"):
                place = trt.TensorLocation.DEVICE
        else:
            kind, pointer = _ELEMENTS[graph_weights.ELEMENTS[values.dtype]], values.ctypes.data
        given = trt.Weights(getattr(trt.DataType, kind), pointer, prod(values.shape))
        if not refitter.set_named_weights(name, given, place):
            raise failed(file)


def restore(engine: trt.ICudaEngine, file: Path) -> None:
    """Gives an engine whose plan was stripped the weights of the network in `file`."""
    trt = library()
    refitter = trt.Refitter(engine, log())
    parser = trt.OnnxParserRefitter(refitter, log())
    if not parser.refit_from_file(str(file)):
        said = parser.get_error(0).desc() if parser.num_errors else log().reason()
        raise EngineError(
            f"the stripped engine of {file.name} cannot take the bundle's weights ({said}): build "
            "it anew"
        )
    if not refitter.refit_cuda_engine():
        raise failed(file)
