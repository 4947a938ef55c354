"""An ONNX graph as it is written, one operator after the other.

A network is a function that calls operators on a Graph and passes on the names of their outputs.
Weights are named, not held: the graph knows their shapes, and where its initializers come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 23  # the first with Attention
ELEMENTS = {
    "f32": TensorProto.FLOAT,
    "i32": TensorProto.INT32,
    "u8": TensorProto.UINT8,
}


@dataclass(frozen=True)
class Steps:
    """How a weight is rounded to eight bits: for each output in steps of which its largest value
    takes `reach`. half: whether their sizes are float16's, or float32's."""

    reach: float
    half: bool = False


@dataclass(frozen=True)
class Weight:
    """An initializer made of the checkpoint's tensors.

    parts: their names; several lie one after the other along the first axis
    rows: of one tensor alone those from the first of these numbers to before the second, if given
    turned: whether the axes of the (two-dimensional) tensor are then swapped
    shape: in the graph
    steps: where it is rounded
    scales: whether it is not the rounded weight but, for each output, the size of a step
    """

    parts: tuple[str, ...]
    rows: tuple[int, int] | None
    turned: bool
    shape: tuple[int, ...]
    steps: Steps | None = None
    scales: bool = False

    def rounded(self, steps: Steps, axis: int) -> tuple[Weight, Weight]:
        """Its eight-bit form, and that of the steps' sizes. axis: of its outputs."""
        values = replace(self, steps=steps)
        return values, replace(values, turned=False, shape=(self.shape[axis],), scales=True)


def pointer(name: str, element: int, shape: Sequence[int]) -> TensorProto:
    """An initializer without data."""
    return TensorProto(name=name, data_type=element, dims=shape, data_location=TensorProto.EXTERNAL)


class Graph:
    """The graph of a network whose weights have these names and shapes."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.weights: dict[str, Weight] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._names: set[str] = set()

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """An input; a side of the shape is a number, or the name of one that varies."""
        self._inputs.append(helper.make_tensor_value_info(name, ELEMENTS[dtype], shape))
        self._names.add(name)
        return name

    def inputs(self) -> dict[str, list[int | str]]:
        """The inputs' shapes."""
        return {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in self._inputs
        }

    def output(self, name: str, dtype: str, shape: Sequence[int | str], value: str) -> None:
        """Gives a computed value out under `name`."""
        self._outputs.append(helper.make_tensor_value_info(name, ELEMENTS[dtype], shape))
        for node in reversed(self._nodes):
            if value in node.output:  # whoever reads it, reads it by its new name
                self._rename(value, name)
                return
        self.add("Identity", value, name=name)

    def _rename(self, old: str, new: str) -> None:
        for node in self._nodes:
            for names in (node.input, node.output):
                for k, name in enumerate(names):
                    if name == old:
                        names[k] = new

    def add(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Adds a node and returns its output, which has its name, numbered where it is taken."""
        return self.split(operator, *inputs, names=[name], **attributes)[0]

    def split(
        self, operator: str, *inputs: str, names: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Adds a node with several outputs."""
        outputs = [self._free(name) for name in names]
        self._nodes.append(
            helper.make_node(operator, list(inputs), outputs, outputs[0], **attributes)
        )
        return outputs

    def _free(self, name: str) -> str:
        free, k = name, 1
        while free in self._names:
            k += 1
            free = f"{name}.{k}"
        self._names.add(free)
        return free

    def constant(self, values: NDArray[np.generic], name: str) -> str:
        """An initializer that stays in the graph; equal ones are stored once."""
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = self._free(name)
            self._initializers.append(numpy_helper.from_array(values, self._constants[key]))
        return self._constants[key]

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32), f"number {value:g}")

    def integers(self, values: Sequence[int]) -> str:
        """An int64 vector: axes, shapes, sizes."""
        return self.constant(np.array(values, np.int64), f"integers {list(values)}")

    def weight(
        self,
        name: str,
        parts: Iterable[str] = (),
        *,
        rows: tuple[int, int] | None = None,
        turned: bool = False,
        shape: Sequence[int] | None = None,
    ) -> str:
        """The initializer `name`, of the checkpoint's tensor of that name or of several `parts`.

        rows: of one tensor alone these, from the first to before the second
        turned: a Linear weight [out, in] as [in, out]; shape: the same elements in another shape
        """
        parts = tuple(parts) or (name,)
        sides = [self.shapes[part] for part in parts]
        count = rows[1] - rows[0] if rows else sum(side[0] for side in sides)
        whole = (count, *sides[0][1:])
        given = tuple(shape) if shape is not None else whole[::-1] if turned else whole
        made = Weight(parts, rows, turned, given)
        # A name stands for one form: another one is numbered.
        free, k = name, 1
        while self.weights.get(free, made) != made:
            k += 1
            free = f"{name}.{k}"
        self.weights[free] = made
        self._names.add(free)
        return free

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that name, or some in that module."""
        return name in self.shapes or any(known.startswith(f"{name}.") for known in self.shapes)

    def children(self, path: str) -> list[str]:
        """The modules path.0, path.1, … that the checkpoint has."""
        found = []
        while self.has(f"{path}.{len(found)}"):
            found.append(f"{path}.{len(found)}")
        return found

    def model(self) -> onnx.ModelProto:
        """The graph so far. Weights are initializers without data (`weights.lay` gives it)."""
        pointers = [
            pointer(name, TensorProto.FLOAT, weight.shape) for name, weight in self.weights.items()
        ]
        graph = helper.make_graph(
            self._nodes, "network", self._inputs, self._outputs, [*self._initializers, *pointers]
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=11,
            producer_name="sdfast",
        )


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
