"""What an ONNX graph reads and writes, read from its protobuf without the onnx package.

onnx.proto of https://github.com/onnx/onnx: ModelProto.graph = 7; GraphProto.input = 11, output =
12; ValueInfoProto.name = 1, type = 2; TypeProto.tensor_type = 1, of which elem_type = 1 and
shape = 2; TensorShapeProto.dim = 1, of which dim_value = 1 and dim_param = 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import protobuf

_ELEMENTS = {1: "f32", 2: "u8", 6: "i32", 7: "i64", 10: "f16"}  # TensorProto.DataType


@dataclass(frozen=True)
class Port:
    """An input or output: its type, and its sides, where one that varies is a name; sides of the
    same name are equal."""

    dtype: str
    sides: tuple[int | str, ...]


def ports(model: bytes) -> tuple[dict[str, Port], dict[str, Port]]:
    """Inputs and outputs by name, in the graph's order. Raises ValueError for what is no ONNX
    model, or one of other types than `Tensor` has."""
    graph = _part(memoryview(model), 7)
    inputs, outputs = (
        dict(_port(value) for number, value in protobuf.parts(graph) if number == wanted)
        for wanted in (11, 12)
    )
    return inputs, outputs


def _port(value: memoryview) -> tuple[str, Port]:
    name, tensor = bytes(_part(value, 1)).decode(), _part(_part(value, 2), 1)
    element = dict(protobuf.numbers(tensor)).get(1, 0)
    if element not in _ELEMENTS:
        raise ValueError(f"{name} is of ONNX's element type {element}")
    dims = [d for number, d in protobuf.parts(_part(tensor, 2)) if number == 1]
    return name, Port(_ELEMENTS[element], tuple(_side(dim, k) for k, dim in enumerate(dims)))


def _side(dim: memoryview, place: int) -> int | str:
    sizes = dict(protobuf.numbers(dim))
    if 1 in sizes:
        return sizes[1]
    names = dict(protobuf.parts(dim))
    return bytes(names[2]).decode() if 2 in names else f"side {place}"


def _part(message: memoryview, number: int) -> memoryview:
    for found, value in protobuf.parts(message):
        if found == number:
            return value
    raise ValueError("it is no ONNX model")
