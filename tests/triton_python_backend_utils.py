"""What Triton's Python backend gives to models under this name, as its README says, for tests: the
server has it built in, and no package does. The subset that models of ours use, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

TYPES = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = 0, 1, 2, 3
    UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = 4, 5, 6, 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        if not isinstance(message, str):
            raise TypeError("message must be a string")
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: NDArray) -> None:
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError("a tensor is a name and a NumPy array")
        if array.dtype.type not in TYPES.values():
            raise TypeError(f"{array.dtype} is no type of Triton's")
        self._name, self._array = name, np.ascontiguousarray(array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray:
        return self._array


class InferenceRequest:
    """cancelled: asked each time that the model asks."""

    def __init__(
        self, inputs: Sequence[Tensor], cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._inputs, self._cancelled = list(inputs), cancelled

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def is_cancelled(self) -> bool:
        return self._cancelled()


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        if type(output_tensors) is not list:
            raise TypeError("output_tensors must be a list")
        self._outputs, self._error = [] if error else output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)
