"""Eight bits as TensorRT takes them: int8 or float8 (e4m3) around zero, and float16 for the rest.

What the chosen products read, and their weights, are rounded by QuantizeLinear and DequantizeLinear
with a zero of 0: activations in steps of one size for the tensor, weights in steps of one for each
output. Weights are stored rounded. How large activations become is for ModelOpt to find
(modelopt.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graph import Steps, Weight, pointer
from .precision import types
from .quantization import at_the_border, products

Scales = Mapping[str, float]
"""By layer, the size of a step of what it reads."""


@dataclass(frozen=True)
class Kind:
    """element: TensorProto's; reach: its largest number, which the largest value becomes"""

    element: int
    reach: float


KINDS = {
    "int8-fp16": Kind(TensorProto.INT8, 127),
    "fp8": Kind(TensorProto.FLOAT8E4M3FN, 448),
}
# As NVIDIA's recipe for diffusers' U-Nets: little to compute, and much that depends on it.
_LEFT_OUT = {
    *("conv_in", "conv_out", "conv_shortcut"),
    *("time_embedding", "time_emb_proj", "add_embedding"),
}


def layers(model: onnx.ModelProto, weights: Mapping[str, Weight]) -> list[onnx.NodeProto]:
    """The products to round."""
    return [
        node
        for node in products(model, weights)
        if not at_the_border(node, weights) and _LEFT_OUT.isdisjoint(node.name.split("."))
    ]


def scales(
    model: onnx.ModelProto, weights: Mapping[str, Weight], kind: str, largest: Mapping[str, float]
) -> dict[str, float]:
    """The steps that its layers need. largest: by the path of each layer of the torch module, the
    largest magnitude of what it reads; what reads nothing but 0 there is not rounded"""
    found = {}
    for node in layers(model, weights):
        paths = [part.removesuffix(".weight") for part in weights[node.input[1]].parts]
        most = max(largest.get(path, 0.0) for path in paths)
        if most > 0:
            found[node.name] = most / KINDS[kind].reach
    return found


def convert(
    model: onnx.ModelProto, weights: Mapping[str, Weight], kind: str, scales: Scales
) -> dict[str, Weight]:
    """Rounds the layers that there are scales of, in a graph that is typed already; but not those
    that are in float32, since what they read is too large for float16. `model` is changed; the
    weights of its initializers are returned. kind: one of KINDS"""
    return _Rounding(model, weights, KINDS[kind], scales).run()


def write_report(file: Path, found: Mapping[str, Scales]) -> None:
    """Every layer's step by network."""
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


class _Rounding:
    """One graph on its way to eight bits."""

    def __init__(
        self, model: onnx.ModelProto, weights: Mapping[str, Weight], kind: Kind, scales: Scales
    ) -> None:
        self.graph, self.known, self.weights = model.graph, types(model), weights
        self.kind, self.scales = kind, scales
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[str, str] = {}  # a tensor → its rounded form
        self.new: dict[str, TensorProto] = {}
        self.of: dict[str, Weight] = {}

    def run(self) -> dict[str, Weight]:
        for node in list(self.graph.node):
            if node.name in self.scales and self.known[node.input[0]] == TensorProto.FLOAT16:
                node.input[0] = self._rounded(node.input[0], self.scales[node.name])
                node.input[1] = self._weight(node.input[1], 0 if node.op_type == "Conv" else 1)
            self.nodes.append(node)
        read = {name for node in self.nodes for name in node.input}
        kept = [i for i in self.graph.initializer if i.name in read]
        self.of |= {i.name: self.weights[i.name] for i in kept if i.name in self.weights}
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend([*kept, *self.new.values()])
        return self.of

    def _rounded(self, name: str, step: float) -> str:
        """The tensor, rounded for all layers that read it."""
        if name not in self.made:
            self.made[name], eight = f"{name}@rounded", f"{name}@eight"
            scale, zero = f"{name}@step", f"{name}@zero"
            self.new[scale] = numpy_helper.from_array(np.asarray(step, np.float16), scale)
            self.new[zero] = helper.make_tensor(zero, self.kind.element, (), bytes(1), raw=True)
            self._add("QuantizeLinear", [name, scale, zero], eight)
            self._add("DequantizeLinear", [eight, scale, zero], self.made[name])
        return self.made[name]

    def _weight(self, name: str, axis: int) -> str:
        """The weight, made of its rounded values when it is read. axis: of its outputs."""
        if name not in self.made:
            self.made[name], values, scale = f"{name}@rounded", f"{name}.eight", f"{name}.scale"
            steps = Steps(self.kind.reach, half=True)
            self.of[values], self.of[scale] = self.weights[name].rounded(steps, axis)
            for stored, kind in ((values, self.kind.element), (scale, TensorProto.FLOAT16)):
                self.new[stored] = pointer(stored, kind, self.of[stored].shape)
            self._add("DequantizeLinear", [values, scale], self.made[name], axis=axis)
        return self.made[name]

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        name = f"{output}@{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
