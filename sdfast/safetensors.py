"""safetensors files, read into NumPy's arrays without the safetensors package.

The format: 8 bytes, the length of a header; the header, in JSON: name → dtype, shape, data_offsets
(of the first byte and the one behind the last, from the header's end on), and texts under
__metadata__; the tensors' little-endian bytes. https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .floats import BFLOAT16, Array

_LONGEST_HEADER = 100 << 20  # bytes, as the safetensors package has it
_LARGEST = 1 << 48  # of numbers there: shapes and places
_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}


def read(file: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors and the texts of the header.

    Raises OSError where the file cannot be read, ValueError for what is no safetensors file or has
    tensors of another type.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError("its header is longer than the file")
        header = _header(stream.read(length))
        data = stream.read()
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("its __metadata__ are not texts")
    return {name: _tensor(name, entry, data) for name, entry in header.items()}, texts


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is not JSON") from error
    if not isinstance(header, dict):
        raise ValueError("its header has no tensors")
    return header


def _tensor(name: str, entry: Any, data: bytes) -> Array:
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = (*shape, begin, end)
        whole = all(type(number) is int and 0 <= number < _LARGEST for number in numbers)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"its header does not tell where {name} is") from error
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"{name} is {kind}; known types are {', '.join(_TYPES)}")
    dtype, count = _TYPES[kind], prod(shape) if whole else 0
    if not whole or end > len(data) or end - begin != count * dtype.itemsize:
        raise ValueError(f"{name} is not inside of it")
    if count == 0:  # for which NumPy takes no offset
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype, count, begin).reshape(shape)
