"""Weights of TensorRT engines that are on the GPU already: put in, or replaced."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EngineError, nearest
from ..tensors import Tensor
from .tensorrt_library import failed, library, log

if TYPE_CHECKING:
    import tensorrt as trt


def replace(engine: trt.ICudaEngine, weights: Mapping[str, Tensor], file: Path) -> None:
    """Gives the engine these weights, of the host's memory or the GPU's, by the graph's names.

    file: the network's, for messages
    Raises EngineError for an engine that was not built refittable or has no such weights, or where
    others are needed with them, as of layers that were fused.
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
    for name, tensor in weights.items():
        values = trt.Weights(_type(tensor.dtype), tensor.pointer, prod(tensor.shape))
        on_gpu = tensor.device.startswith("cuda")
        place = trt.TensorLocation.DEVICE if on_gpu else trt.TensorLocation.HOST
        if not refitter.set_named_weights(name, values, place):
            raise failed(file)
    if missing := refitter.get_missing_weights():
        raise EngineError(
            f"the engine of {file.name} can take {', '.join(weights)} only together with "
            f"{', '.join(missing)}: refit all of them at once"
        )
    if not refitter.refit_cuda_engine():
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


def _type(dtype: str) -> trt.DataType:
    trt = library()
    return {
        "f32": trt.DataType.FLOAT,
        "f16": trt.DataType.HALF,
        "i32": trt.DataType.INT32,
        "i64": trt.DataType.INT64,
        "u8": trt.DataType.UINT8,
    }[dtype]
