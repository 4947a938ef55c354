"""int8: a graph whose products are of eight bits, and the ranges of real runs that it needs.

Weights are int8, symmetric, with a scale for each output; activations uint8 with a scale and a zero
for the whole tensor: most come out of a SiLU or a GEGLU and lie to one side of zero. Both are
written as QuantizeLinear and DequantizeLinear around the float32 operator, which backends turn into
one kernel of integers. ONNX Runtime does so with a convolution only where its result is quantized
as well; OpenVINO takes that or leaves it (arXiv:1712.05877 describes the arithmetic).

What is not a product of a weight (attention, norms, activations, sums) stays as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from . import precision
from .graph import Steps, Weight, pointer

PRODUCTS = ("Conv", "MatMul")
# Layers at the latent or at pixels, of fewer channels than this on one side: little to compute, and
# all that the picture is goes through them.
FEWEST_CHANNELS = 16
_LEVELS = 255
_STEPS = Steps(127)  # of weights


@dataclass(frozen=True)
class Span:
    """The least and the greatest value that a tensor had."""

    low: float
    high: float

    def scale(self) -> np.float32:
        """One step of 255 between them, and 0, which padding is, among the steps."""
        width = max(self.high, 0.0) - min(self.low, 0.0)
        return np.float32(width / _LEVELS if width > 0 else 1.0)

    def zero(self) -> np.uint8:
        """The step that is 0."""
        return np.uint8(np.clip(np.rint(-min(self.low, 0.0) / self.scale()), 0, _LEVELS))


Spans = Mapping[str, Span]


def layers(model: onnx.ModelProto, weights: Mapping[str, Weight]) -> list[onnx.NodeProto]:
    """The products that become int8."""
    return [node for node in products(model, weights) if not at_the_border(node, weights)]


def left_out(model: onnx.ModelProto, weights: Mapping[str, Weight]) -> tuple[str, ...]:
    """The names of the products with a weight that stay as they are."""
    every = products(model, weights)
    return tuple(node.name for node in every if at_the_border(node, weights))


def rounded(model: onnx.ModelProto, weights: Mapping[str, Weight]) -> list[str]:
    """The tensors that are rounded to eight bits: what products read, what convolutions write."""
    names = dict[str, None]()
    for node in layers(model, weights):
        names[node.input[0]] = None
        if node.op_type == "Conv":
            names[node.output[0]] = None
    return list(names)


def spans(
    file: Path, names: Iterable[str], feeds: Iterable[Mapping[str, NDArray[np.generic]]]
) -> dict[str, Span]:
    """What range each of these tensors of the float32 graph in `file` has over all the inputs."""
    model = onnx.load(file, load_external_data=False)
    names = list(names)
    del model.graph.output[:]
    for name in names:
        for operator in ("ReduceMin", "ReduceMax"):
            bound = f"{name}@{operator}"
            model.graph.node.append(helper.make_node(operator, [name], [bound], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(bound, TensorProto.FLOAT, []))
    found = np.stack([np.stack(values) for values in precision.observed(model, file, feeds)])
    low, high = found[:, ::2].min(0), found[:, 1::2].max(0)
    return {n: Span(float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}


def convert(
    model: onnx.ModelProto, weights: Mapping[str, Weight], found: Spans
) -> dict[str, Weight]:
    """Makes the products of the float32 graph int8. `model` is changed; the weights of its
    initializers are returned. found: the range of every tensor that `rounded` names."""
    return _Rounding(model, weights, found).run()


def write_report(file: Path, found: Mapping[str, Spans]) -> None:
    """Every rounded tensor's range by network, the widest first."""
    report = {
        network: {
            name: [float(f"{span.low:.4g}"), float(f"{span.high:.4g}")]
            for name, span in sorted(of.items(), key=lambda item: item[1].low - item[1].high)
        }
        for network, of in found.items()
    }
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def products(model: onnx.ModelProto, weights: Mapping[str, Weight]) -> list[onnx.NodeProto]:
    """The products with a weight."""
    return [n for n in model.graph.node if n.op_type in PRODUCTS and n.input[1] in weights]


def at_the_border(node: onnx.NodeProto, weights: Mapping[str, Weight]) -> bool:
    """Whether a product is at the latent or at pixels."""
    return min(weights[node.input[1]].shape[:2]) < FEWEST_CHANNELS


class _Rounding:
    """One graph on its way to int8."""

    def __init__(self, model: onnx.ModelProto, weights: Mapping[str, Weight], found: Spans) -> None:
        self.graph, self.weights, self.found = model.graph, weights, found
        self.chosen = {node.name for node in layers(model, weights)}
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[str, str] = {}  # a tensor → its rounded form
        self.new: list[TensorProto] = []
        self.of: dict[str, Weight] = {}

    def run(self) -> dict[str, Weight]:
        for node in list(self.graph.node):
            if node.name not in self.chosen:
                self.nodes.append(node)
                continue
            node.input[0] = self._rounded(node.input[0])
            node.input[1] = self._weight(node.input[1], 0 if node.op_type == "Conv" else 1)
            self.nodes.append(node)
            if node.op_type == "Conv":
                name = node.output[0]
                node.output[0] = f"{name}@exact"
                self._pair(node.output[0], name, name)
                self.made[name] = name
        read = {name for node in self.nodes for name in node.input}
        kept = [i for i in self.graph.initializer if i.name in read]
        self.of |= {i.name: self.weights[i.name] for i in kept if i.name in self.weights}
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend([*kept, *self.new])
        return self.of

    def _rounded(self, name: str) -> str:
        """The tensor, rounded for all that read it."""
        if name not in self.made:
            self.made[name] = f"{name}@rounded"
            self._pair(name, self.made[name], name)
        return self.made[name]

    def _pair(self, source: str, target: str, spanned: str) -> None:
        """target: what is left of source by rounding it to the 255 steps of a span."""
        scale, zero = f"{target}@scale", f"{target}@zero"
        span = self.found[spanned]
        self.new.append(numpy_helper.from_array(np.asarray(span.scale()), scale))
        self.new.append(numpy_helper.from_array(np.asarray(span.zero()), zero))
        integers = f"{target}@uint8"
        self._add("QuantizeLinear", [source, scale, zero], integers)
        self._add("DequantizeLinear", [integers, scale, zero], target)

    def _weight(self, name: str, axis: int) -> str:
        """The weight, made of its int8 values when it is read. axis: of its outputs."""
        if name not in self.made:
            self.made[name] = f"{name}@rounded"
            values, scale = f"{name}.int8", f"{name}.scale"
            self.of[values], self.of[scale] = self.weights[name].rounded(_STEPS, axis)
            for stored, kind in ((values, TensorProto.INT8), (scale, TensorProto.FLOAT)):
                self.new.append(pointer(stored, kind, self.of[stored].shape))
            self._add("DequantizeLinear", [values, scale], self.made[name], axis=axis)
        return self.made[name]

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        name = f"{output}@{operator}"  # its output may be named as the product is
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
