"""Which files an ONNX graph points into, read from its protobuf without the onnx package.

https://protobuf.dev/programming-guides/encoding/ and onnx.proto of https://github.com/onnx/onnx:
an initializer's `external_data` has an entry `location`, a path that whoever reads the graph opens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
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
    except (IndexError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("it is no ONNX model") from error


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    if kind == "Entry":
        entry = {number: bytes(value).decode() for number, value in _fields(message)}
        if entry.get(1) == "location":
            yield entry.get(2, "")
        return
    within = _MESSAGES[kind]
    for number, value in _fields(message):
        if number in within:
            yield from _locations(value, within[number])


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields that have a length: strings, bytes and messages."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire == _EIGHT_BYTES else 4
        elif wire == _BYTES:
            length, at = _varint(message, at)
            yield number, message[at : at + length]
            at += length
        else:
            raise ValueError("it is no ONNX model")
    if at != len(message):
        raise ValueError("it is no ONNX model")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("it is no ONNX model")
