"""A network as calls of PyTorch's functions, one after the other (torch_lowering.py makes it of an
ONNX graph).

`run` is plain Python over tensors whose shapes alone decide what is called, so that torch.export
traces it.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..floats import Array
from ..tensors import TensorSpec
from .torch_operators import Compute

torch: Any = import_module("torch")

NAMES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}


@dataclass(frozen=True)
class Known:
    """An input that is no tensor: a number, several, or None where it is left out."""

    value: Any


@dataclass(frozen=True)
class Call:
    """One operator.

    inputs: names of tensors, or what is known
    kind: the type that floating inputs are cast to; None: they stay as they are
    frees: the tensors that nothing reads after it
    """

    compute: Compute
    inputs: tuple[str | Known, ...]
    outputs: tuple[str, ...]
    kind: Any
    frees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stored:
    """Elements of a type, in the graph or, from `offset` on, in a file."""

    shape: tuple[int, ...]
    kind: Any
    elements: bytes | Path
    offset: int


@dataclass(frozen=True)
class Network:
    """A graph.

    stored: its initializers, by their names; forming: what weights are made of them by
    weights: by the names that they have where they are used, with the types that those of floats
        are cast to; None: they stay as they are
    convolves: whether it has convolutions
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    stored: Mapping[str, Stored]
    forming: tuple[Call, ...]
    weights: Mapping[str, Any]
    calls: tuple[Call, ...]
    convolves: bool


def read(
    network: Network, device: str, replaced: Mapping[str, Array] | None = None
) -> dict[str, Any]:
    """The weights on a device of PyTorch's. On the CPU those that are used as they are stored stay
    in their files, which are mapped.

    replaced: other values for what is stored under these names (`Options.replaced`)

    Raises BundleError where a file does not have them.
    """
    maps: dict[Path, mmap.mmap] = {}
    replaced = replaced or {}
    values = {
        name: _of_array(replaced[name], stored.kind)
        if name in replaced
        else _tensor(name, stored, maps)
        for name, stored in network.stored.items()
    }
    found = {n: _placed(values[n], k, device) for n, k in network.weights.items() if n in values}
    for call in network.forming:
        values.update(_made(call, values))
        for name in call.outputs:
            if name in network.weights:
                found[name] = _placed(values[name], network.weights[name], device)
        for name in call.frees:
            del values[name]
    return {name: found[name] for name in network.weights}


def run(network: Network, tensors: Mapping[str, Any]) -> list[Any]:
    """The outputs, in their order. tensors: the inputs and the weights."""
    values = dict(tensors)
    for call in network.calls:
        values.update(_made(call, values))
        for name in call.frees:
            del values[name]
    kinds = {name: kind for kind, name in NAMES.items()}
    return [values[n].to(kinds[spec.dtype]).contiguous() for n, spec in network.outputs.items()]


def _made(call: Call, values: Mapping[str, Any]) -> dict[str, Any]:
    given = [x.value if isinstance(x, Known) else _as(values[x], call.kind) for x in call.inputs]
    made = call.compute(*given)
    return dict(zip(call.outputs, made if len(call.outputs) > 1 else [made], strict=True))


def _as(value: Any, kind: Any) -> Any:
    """Floating tensors in that type; shapes and other tensors as they are."""
    if kind is None or isinstance(value, tuple) or not value.is_floating_point():
        return value
    return value.to(kind)


def _tensor(name: str, stored: Stored, maps: dict[Path, mmap.mmap]) -> Any:
    """Over the memory where it is stored. maps: of the files so far."""
    elements = stored.elements
    try:
        if not isinstance(elements, Path):
            data: Any = bytearray(elements)
        elif elements in maps:
            data = maps[elements]
        else:
            # Copy on write: PyTorch has no tensors that are read-only; nothing writes to these.
            with elements.open("rb") as stream:
                data = maps[elements] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(
            data, dtype=stored.kind, count=prod(stored.shape), offset=stored.offset
        )
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{name} cannot be read ({error}): export or download the bundle again"
        ) from error
    return flat.reshape(stored.shape)


def _of_array(array: Array, kind: Any) -> Any:
    """Over the array's memory, whose elements are of that type, or the bits of it."""
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == kind else tensor.view(kind)


def _placed(tensor: Any, kind: Any, device: str) -> Any:
    tensor = _as(tensor.to(device), kind)
    # On a GPU kernels of convolutions lie in the order that `Conv` has its inputs in; a CPU's
    # library orders them anew in any case, and they stay mapped.
    last = device != "cpu" and tensor.dim() == 4
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor
