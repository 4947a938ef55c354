"""Moves a graph's weights into a safetensors file that it points into.

A safetensors file is a header and then each tensor's raw little-endian bytes; ONNX's external data
is (file, offset, length) of just such bytes. So weights are stored once, under the checkpoint's
names and in its layout and precision, and can be swapped without touching the graph. Where the
tracer turned a weight over (Linear layers) or widened it, the graph keeps the checkpoint's tensor
and says so with Transpose and Cast, which every backend folds when it loads the graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import nn

SMALLEST = 64  # elements; below it a constant stays in the graph


def move_out(model: onnx.ModelProto, module: nn.Module, file: Path) -> int:
    """Writes the weights that `model` uses to `file`, points the graph there, and returns how many
    elements they have. `model` is changed; it must be saved in `file`'s folder."""
    known = {name: weight.detach().numpy() for name, weight in module.state_dict().items()}
    found = _by_content(known)
    used: dict[str, NDArray[np.generic]] = {}
    nodes, kept = [], []
    for initializer in model.graph.initializer:
        values = numpy_helper.to_array(initializer)
        match = found.get(_key(values)) if values.size >= SMALLEST else None
        if match is None:
            kept.append(initializer)
            continue
        name, turned = match
        if name not in used:
            used[name] = _narrowed(known[name])
            pointer = TensorProto(name=name, data_location=TensorProto.EXTERNAL)
            pointer.data_type = helper.np_dtype_to_tensor_dtype(used[name].dtype)
            pointer.dims.extend(used[name].shape)
            kept.append(pointer)
        shape = _shape_for(initializer.name, values) if values.ndim > known[name].ndim else None
        kept += [shape] if shape is not None else []
        widen = used[name].dtype == np.float16
        nodes += _restore(name, initializer.name, widen, turned, shape)
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    save_file(used, file)
    file.chmod(0o644)
    places = _places(file)
    for pointer in model.graph.initializer:
        if pointer.data_location != TensorProto.EXTERNAL:
            continue
        start, end = places[pointer.name]
        for key, value in (("location", file.name), ("offset", start), ("length", end - start)):
            pointer.external_data.add(key=key, value=str(value))
    return sum(array.size for array in used.values())


def _key(values: NDArray[np.generic]) -> tuple[tuple[int, ...], bytes]:
    # Leading ones aside: the tracer adds them for broadcasting.
    shape = values.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape, np.ascontiguousarray(values).tobytes()


def _shape_for(name: str, values: NDArray[np.generic]) -> TensorProto:
    return numpy_helper.from_array(np.array(values.shape, np.int64), f"{name}.shape")


def _by_content(
    known: Mapping[str, NDArray[np.generic]],
) -> dict[tuple[tuple[int, ...], bytes], tuple[str, bool]]:
    """Contents of a weight, as it is or turned over → (its name, turned over)."""
    found: dict[tuple[tuple[int, ...], bytes], tuple[str, bool]] = {}
    for name, values in known.items():
        if values.ndim == 2:
            found.setdefault(_key(values.T), (name, True))
    for name, values in known.items():
        found[_key(values)] = (name, False)
    return found


def _narrowed(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """As float16 where that loses nothing, as for a checkpoint that was saved in it."""
    if values.dtype != np.float32:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if bool((half.astype(np.float32) == values).all()) else values


def _restore(
    name: str, wanted: str, widen: bool, turned: bool, shape: TensorProto | None
) -> list[onnx.NodeProto]:
    """Nodes that make the initializer `wanted` out of the stored weight `name`."""
    steps: list[tuple[str, list[str], dict[str, object]]] = []
    if widen:
        steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
    if turned:
        steps.append(("Transpose", [], {"perm": [1, 0]}))
    if shape is not None:
        steps.append(("Reshape", [shape.name], {}))
    if not steps:
        return [helper.make_node("Identity", [name], [wanted])] if name != wanted else []
    nodes, source = [], name
    for k, (operator, others, attributes) in enumerate(steps):
        target = wanted if k + 1 == len(steps) else f"{wanted}.{operator}"
        nodes.append(helper.make_node(operator, [source, *others], [target], **attributes))
        source = target
    return nodes


def _places(file: Path) -> dict[str, tuple[int, int]]:
    """Each tensor's first and last byte in a safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return {
        name: tuple(8 + length + offset for offset in entry["data_offsets"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
