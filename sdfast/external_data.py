"""Which files an ONNX graph points into, read from its protobuf without the onnx package.

onnx.proto of https://github.com/onnx/onnx: an initializer's `external_data` has an entry
`location`, a path that whoever reads the graph opens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from . import protobuf

# Each message's fields that tensors may lie in: number → message.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}


def locations(model: bytes) -> frozenset[str]:
    """The paths as they stand in the file. Raises ValueError for what is no ONNX model."""
    try:
        return frozenset(_locations(memoryview(model), "Model"))
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no ONNX model") from error


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    if kind == "Entry":
        entry = {number: bytes(value).decode() for number, value in protobuf.parts(message)}
        if entry.get(1) == "location":
            yield entry.get(2, "")
        return
    within = _MESSAGES[kind]
    for number, value in protobuf.parts(message):
        if number in within:
            yield from _locations(value, within[number])
