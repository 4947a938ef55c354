"""The weights of an ONNX graph that lie in files of the bundle, and the checkpoint's tensors that
they are made of, read from its protobuf without the onnx package.

onnx.proto of https://github.com/onnx/onnx: ModelProto.graph = 7; GraphProto.initializer = 5;
TensorProto.dims = 1, data_type = 2, name = 8, doc_string = 12, external_data = 13, of whose entries
key = 1 and value = 2.

The exporter tells where a matrix is from. As the checkpoint has it, by its name: PART@FIRST, those
rows of the tensor PART that begin with FIRST (all of them where it is left out). As the graph reads
it, in its doc_string: {"rows": [[PART, FIRST, END], …], "turned": whether its axes are swapped}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from . import protobuf
from .floats import BFLOAT16, Array

_FLOAT, _FLOAT16, _BFLOAT16 = 1, 10, 16  # TensorProto.DataType
_TYPES: dict[int, np.dtype[Any]] = {
    _FLOAT: np.dtype("<f4"),
    _FLOAT16: np.dtype("<f2"),
    _BFLOAT16: BFLOAT16,
}
ELEMENTS = {dtype: element for element, dtype in _TYPES.items()}
"""The element types of arrays of weights."""


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor of the checkpoint, from the first to before the end."""

    part: str
    first: int
    end: int


@dataclass(frozen=True)
class GraphWeight:
    """An initializer.

    element: its type (TensorProto.DataType)
    file, offset: where it is stored, beside the graph
    rows: what it is made of, one after the other; none where that is not told
    turned: whether the axes of that are then swapped
    """

    name: str
    element: int
    shape: tuple[int, ...]
    file: str
    offset: int
    rows: tuple[Rows, ...]
    turned: bool

    def values(self, folder: Path) -> Array:
        """As it is stored, mapped. Raises OSError or ValueError where the file does not have it."""
        if self.element not in _TYPES:
            raise ValueError(f"{self.name} is of ONNX's element type {self.element}")
        dtype, count = _TYPES[self.element], prod(self.shape)
        flat: Array = np.memmap(folder / self.file, dtype, "r", self.offset, (count,))
        return flat.reshape(self.shape)


def read(model: bytes) -> list[GraphWeight]:
    """Those of the graph. Raises ValueError for what is no ONNX model."""
    return [
        _weight(tensor)
        for number, graph in protobuf.parts(memoryview(model))
        if number == 7
        for kind, tensor in protobuf.parts(graph)
        if kind == 5 and any(n == 13 for n, _ in protobuf.parts(tensor))
    ]


def record(rows: Sequence[Rows], turned: bool) -> str:
    """The doc_string of a matrix of these rows."""
    told = [[one.part, one.first, one.end] for one in rows]
    return json.dumps({"rows": told, "turned": turned}, separators=(",", ":"))


def _weight(tensor: memoryview) -> GraphWeight:
    numbers, parts = list(protobuf.numbers(tensor)), list(protobuf.parts(tensor))
    shape = tuple(value for number, value in numbers if number == 1)
    texts = {number: bytes(value).decode() for number, value in parts if number in (8, 12)}
    place = dict(_entry(value) for number, value in parts if number == 13)
    name = texts.get(8, "")
    rows, turned = _origin(name, texts.get(12, ""), shape) if len(shape) > 1 else ((), False)
    return GraphWeight(
        name,
        dict(numbers).get(2, 0),
        shape,
        place.get("location", ""),
        int(place.get("offset", "0")),
        rows,
        turned,
    )


def _entry(entry: memoryview) -> tuple[str, str]:
    fields = {number: bytes(value).decode() for number, value in protobuf.parts(entry)}
    return fields.get(1, ""), fields.get(2, "")


def _origin(name: str, told: str, shape: tuple[int, ...]) -> tuple[tuple[Rows, ...], bool]:
    if not told:
        part, at, first = name.rpartition("@")
        if not at:
            return (), False
        start = int(first or "0")
        return (Rows(part, start, start + shape[0]),), False
    found = json.loads(told)
    try:
        rows = tuple(Rows(str(part), int(first), int(end)) for part, first, end in found["rows"])
        turned = bool(found["turned"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"what {name} is made of is not told rightly") from error
    whole = sum(one.end - one.first for one in rows)
    if whole != (shape[1] if turned else shape[0]) or (turned and len(shape) != 2):
        raise ValueError(f"{name} is not made of what it tells")
    return rows, turned
