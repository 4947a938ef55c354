"""The wire format of protocol buffers, as far as ONNX files are written in it.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def numbers(message: memoryview) -> Iterator[tuple[int, int]]:
    """The fields that are whole numbers, by their tags, as unsigned. Raises ValueError for what is
    no message, as `parts` does."""
    for tag, value in _fields(message):
        if isinstance(value, int):
            yield tag, value


def parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields that have a length, by their tags: strings, bytes and messages."""
    for tag, value in _fields(message):
        if isinstance(value, memoryview):
            yield tag, value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire == _EIGHT_BYTES else 4
        elif wire == _BYTES:
            length, at = _varint(message, at)
            yield number, message[at : at + length]
            at += length
        else:
            raise ValueError("it is no protobuf message")
    if at != len(message):
        raise ValueError("it is no protobuf message")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            break
    raise ValueError("it is no protobuf message")
