"""Lays weights down in safetensors files that graphs point into.

A safetensors file is a header and then each tensor's raw little-endian bytes; ONNX's external data
is (file, offset, length) of just such bytes. So weights are stored once, for all graphs that read
them, and can be swapped without touching a graph.

Two layouts: as the graph reads them (turned, side by side, in its precision: an engine maps the
file and computes), or as the checkpoint has them (smaller where that is half precision, and the
checkpoint's own file can be pointed into; nodes of constants, which every backend folds when it
loads the graph, make of them what the graph reads).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from .. import graph_weights
from ..graph_weights import Rows
from .graph import Steps, Weight

_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
}
_ELEMENTS = {dtype: element for element, dtype in _TYPES.items()}
_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
}
_SMALLEST = 2.0**-24  # of float16's above 0
_ALIGNMENT = 64  # of the first tensor; each is then aligned to its elements, mostly to more


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie."""

    file: str
    offset: int
    length: int


def assemble(target: torch.Tensor, weight: Weight, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes the initializer's values to `target`, converting to its type: one pass over them, or
    for eight bits and their scales a few over a float32 copy."""
    parts = [_rows(tensors[part], weight) for part in weight.parts]
    if weight.steps is not None:
        exact = torch.cat([part.float() for part in parts])
        scales = _scales(exact, weight.steps)
        if weight.scales:
            target.copy_(scales)
            return
        rounded = (exact.flatten(1) / scales[:, None]).view(exact.shape)
        if target.dtype == torch.int8:  # other types round when they are written
            # To float16 a step may have become smaller, and the largest value more of them.
            rounded.round_().clamp_(-127, 127)
        parts = [rounded]
    count = sum(part.shape[0] for part in parts)
    whole = target.T if weight.turned else target.view(count, *parts[0].shape[1:])
    start = 0
    for part in parts:
        end = start + part.shape[0]
        whole[start:end].copy_(part)
        start = end


def _scales(weight: torch.Tensor, steps: Steps) -> torch.Tensor:
    """For each output the step by which `reach` of them make the largest of its weights."""
    largest = weight.abs().flatten(1).amax(1)
    scales = torch.where(largest > 0, largest / steps.reach, 1.0)
    return scales.half().clamp_(min=_SMALLEST).float() if steps.half else scales


def as_graph(
    graphs: Iterable[tuple[onnx.ModelProto, Mapping[str, Weight]]],
    tensors: Mapping[str, torch.Tensor],
    file: Path,
) -> None:
    """Writes what the graphs read to `file`, which will lie in their folder, and points them."""
    graphs = list(graphs)
    forms = _forms(graphs, lambda pointer, weight: True)
    places = _laid(file, {name: _as_read(form, tensors) for name, form in forms.items()})
    _point_forms(graphs, forms, places)
    for model, weights in graphs:
        for pointer in _pointers(model):
            if not _is_rounded(pointer, weights[pointer.name]):
                _tell(pointer, weights[pointer.name], tensors)


def as_checkpoint(
    graphs: Iterable[tuple[onnx.ModelProto, Mapping[str, Weight]]],
    tensors: Mapping[str, torch.Tensor],
    file: Path,
    linked: Mapping[str, Place] | None = None,
) -> None:
    """Writes the checkpoint's tensors that the graphs need to `file`, and has the graphs make of
    them what they read. linked: tensors that lie in other files of the folder already."""
    graphs, linked = list(graphs), linked or {}
    needed = {
        part
        for model, weights in graphs
        for p in _pointers(model)
        if not _is_rounded(p, weights[p.name])
        for part in weights[p.name].parts
    }
    own = {name: _as_is(tensors[name]) for name in sorted(needed - set(linked))}
    forms = _forms(graphs, _is_rounded)  # which the checkpoint does not have
    places = _laid(file, own | {name: _as_read(form, tensors) for name, form in forms.items()})
    _point_forms(graphs, forms, places)
    for model, weights in graphs:
        _restore(model, weights, tensors, {**linked, **places})


_Form = tuple[Weight, torch.dtype]


@dataclass(frozen=True)
class _Stored:
    """A tensor to write, and what writes it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    fill: Callable[[torch.Tensor], object]


def _as_is(tensor: torch.Tensor) -> _Stored:
    return _Stored(tensor.dtype, tuple(tensor.shape), lambda target: target.copy_(tensor))


def _as_read(form: _Form, tensors: Mapping[str, torch.Tensor]) -> _Stored:
    weight, dtype = form
    return _Stored(dtype, weight.shape, lambda target: assemble(target, weight, tensors))


def _is_rounded(pointer: TensorProto, weight: Weight) -> bool:
    """Whether it is a weight of eight bits or the scales of one."""
    return weight.steps is not None


def _forms(
    graphs: Iterable[tuple[onnx.ModelProto, Mapping[str, Weight]]],
    wanted: Callable[[TensorProto, Weight], bool],
) -> dict[str, _Form]:
    """What those initializers are that are wanted, each once, by the names they are stored by."""
    stored: dict[str, _Form] = {}
    known: set[_Form] = set()
    for model, weights in graphs:
        for pointer in _pointers(model):
            form = weights[pointer.name], _TYPES[pointer.data_type]
            if wanted(pointer, form[0]) and form not in known:
                known.add(form)
                stored[_free(pointer.name, stored)] = form
    return stored


def _point_forms(
    graphs: Iterable[tuple[onnx.ModelProto, Mapping[str, Weight]]],
    forms: Mapping[str, _Form],
    places: Mapping[str, Place],
) -> None:
    names = {form: name for name, form in forms.items()}
    for model, weights in graphs:
        for pointer in _pointers(model):
            form = weights[pointer.name], _TYPES[pointer.data_type]
            if form in names:
                _point(pointer, places[names[form]])


def _laid(file: Path, stored: Mapping[str, _Stored]) -> dict[str, Place]:
    """Writes a file of these tensors, if there are any; returns where each lies."""
    sizes = {name: (one.dtype, one.shape) for name, one in stored.items()}
    order, places = _layout(sizes, file.name)
    if stored:
        for name, target in _written(file, sizes, order):
            stored[name].fill(target)
    return places


def as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its weights as inputs."""
    kept = [i for i in model.graph.initializer if i.data_location != TensorProto.EXTERNAL]
    for p in _pointers(model):
        model.graph.input.append(helper.make_tensor_value_info(p.name, p.data_type, p.dims))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def files(models: Iterable[onnx.ModelProto]) -> tuple[str, ...]:
    """The files that graphs point into."""
    places = (e for m in models for p in _pointers(m) for e in p.external_data)
    return tuple(sorted({entry.value for entry in places if entry.key == "location"}))


def _restore(
    model: onnx.ModelProto,
    weights: Mapping[str, Weight],
    tensors: Mapping[str, torch.Tensor],
    places: Mapping[str, Place],
) -> None:
    """Has nodes make the initializers out of the checkpoint's tensors."""
    nodes, raw = [], dict[str, TensorProto]()
    pointers = [p for p in _pointers(model) if not _is_rounded(p, weights[p.name])]
    wanted = [(p.name, p.data_type, weights[p.name]) for p in pointers]
    made = {name for name, _, _ in wanted}
    kept = [i for i in model.graph.initializer if i.name not in made]
    for name, element, weight in wanted:
        parts = []
        for part in weight.parts:
            tensor = _rows(tensors[part], weight)
            source = f"{part}@{weight.rows[0] if weight.rows else ''}"
            if source not in raw:
                raw[source] = TensorProto(
                    name=source,
                    data_type=_ELEMENTS[tensor.dtype],
                    dims=tensor.shape,
                    data_location=TensorProto.EXTERNAL,
                )
                _point(raw[source], _rows_place(places[part], tensors[part], weight))
            parts.append(source)
        nodes += _formation(name, element, weight, parts, tensor, kept)
    whole = [*nodes, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([*kept, *raw.values()])
    model.graph.node.extend(whole)


def _formation(
    name: str,
    element: int,
    weight: Weight,
    parts: list[str],
    first: torch.Tensor,
    constants: list[TensorProto],
) -> Iterator[onnx.NodeProto]:
    """Nodes that make the initializer `name` of the raw tensors `parts`."""
    steps: list[tuple[str, list[str], dict[str, object]]] = []
    if len(parts) > 1:
        steps.append(("Concat", parts, {"axis": 0}))
    if _ELEMENTS[first.dtype] != element:
        steps.append(("Cast", [], {"to": element}))
    if weight.turned:
        steps.append(("Transpose", [], {"perm": [1, 0]}))
    elif len(parts) == 1 and tuple(first.shape) != weight.shape:
        constants.append(
            helper.make_tensor(
                f"{name}@shape", TensorProto.INT64, [len(weight.shape)], weight.shape
            )
        )
        steps.append(("Reshape", [f"{name}@shape"], {}))
    if not steps:
        steps.append(("Identity", [], {}))
    source = parts[0]
    for k, (operator, others, attributes) in enumerate(steps):
        target = name if k + 1 == len(steps) else f"{name}@{operator}"
        inputs = others if operator == "Concat" else [source, *others]
        yield helper.make_node(operator, inputs, [target], target, **attributes)
        source = target


def _tell(pointer: TensorProto, weight: Weight, tensors: Mapping[str, torch.Tensor]) -> None:
    """Has a matrix tell what it is made of, for LoRA that change it at run time; its name does
    where it lies there as in the checkpoint (graph_weights)."""
    if len(weight.shape) < 2:
        return
    whole = {part: (0, tensors[part].shape[0]) for part in weight.parts}
    rows = [Rows(part, *(weight.rows or whole[part])) for part in weight.parts]
    pointer.doc_string = graph_weights.record(rows, weight.turned)


def _rows(tensor: torch.Tensor, weight: Weight) -> torch.Tensor:
    return tensor[slice(*weight.rows)] if weight.rows else tensor


def _rows_place(place: Place, tensor: torch.Tensor, weight: Weight) -> Place:
    """Where those rows of a tensor lie that the initializer is made of: one after the other."""
    each = place.length // tensor.shape[0]
    start, end = weight.rows or (0, tensor.shape[0])
    return Place(place.file, place.offset + start * each, (end - start) * each)


def _pointers(model: onnx.ModelProto) -> list[TensorProto]:
    return [i for i in model.graph.initializer if i.data_location == TensorProto.EXTERNAL]


def _point(pointer: TensorProto, place: Place) -> None:
    del pointer.external_data[:]
    for key, value in (
        ("location", place.file),
        ("offset", place.offset),
        ("length", place.length),
    ):
        pointer.external_data.add(key=key, value=str(value))


def _free(name: str, taken: Mapping[str, object]) -> str:
    free, k = name, 1
    while free in taken:
        k += 1
        free = f"{name}.{k}"
    return free


def _layout(
    sizes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], file: str
) -> tuple[list[str], dict[str, Place]]:
    """The tensors' order in a file, the widest elements first, and their places."""
    order = sorted(sizes, key=lambda name: (-sizes[name][0].itemsize, name))
    offset, places = len(_header(sizes, order)), {}
    for name in order:
        dtype, shape = sizes[name]
        places[name] = Place(file, offset, prod(shape) * dtype.itemsize)
        offset += places[name].length
    return order, places


def _header(sizes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], order: list[str]) -> bytes:
    entries, offset = {}, 0
    for name in order:
        dtype, shape = sizes[name]
        end = offset + prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _written(
    file: Path, sizes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], order: list[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """A new safetensors file's tensors, mapped, each to be filled before the next is asked for."""
    header = _header(sizes, order)
    whole = len(header) + sum(prod(shape) * dtype.itemsize for dtype, shape in sizes.values())
    with file.open("wb") as stream:
        stream.write(header)
        stream.flush()
        # All of it now: a full disk is an error here, and would be a crash later, in the map.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, whole)
        else:
            stream.truncate(whole)
    file.chmod(0o644)
    mapped = torch.UntypedStorage.from_file(str(file), shared=True, nbytes=whole)
    start = len(header)
    for name in order:
        dtype, shape = sizes[name]
        target = torch.empty(0, dtype=dtype)
        yield name, target.set_(mapped, start // dtype.itemsize, shape)
        start += prod(shape) * dtype.itemsize
