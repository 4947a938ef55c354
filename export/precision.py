"""Half precision: which tensors bear it, and a graph typed for it.

A graph says the type of everything (TensorRT 11 has no precision flags: what is written is what
runs). A tensor whose values come near the end of float16 stays float32, as do the operators that
touch it; what accumulates (norms, softmax) or is exact (angles of the time, pixels) does so in
float32 in any case. Inputs and outputs are float32 at every precision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..networks import EXACT_NAMES, EXACT_OPERATORS
from .graph import Weight

PRECISIONS = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
LARGEST = 65504.0  # of float16
HEADROOM = 4.0  # other prompts reach higher than those that were looked at
_OTHER_TYPES = {"Shape": TensorProto.INT64, "ArgMax": TensorProto.INT64, "Equal": TensorProto.BOOL}
FLOATS = set(PRECISIONS.values())


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Each tensor's element type (TensorProto.DataType)."""
    graph = model.graph
    known = {i.name: i.data_type for i in graph.initializer}
    known |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
    for node in graph.node:
        kind = _OTHER_TYPES.get(node.op_type)
        if node.op_type == "Cast":
            kind = next(a.i for a in node.attribute if a.name == "to")
        elif node.op_type == "QuantizeLinear":
            kind = known[node.input[2]]  # as its zero is
        elif node.op_type == "DequantizeLinear":
            kind = known[node.input[1]]  # as its scale is
        for output in node.output:
            known[output] = known[node.input[0]] if kind is None else kind
    return known


def magnitudes(file: Path, feeds: Iterable[Mapping[str, NDArray[np.generic]]]) -> dict[str, float]:
    """The largest magnitude of every float32 tensor that the graph in `file` computes, over all
    the inputs given. Not finite where float32 itself overflows."""
    model = onnx.load(file, load_external_data=False)
    floats = {name for name, kind in types(model).items() if kind == TensorProto.FLOAT}
    names = [o for node in model.graph.node for o in node.output if o in floats]
    del model.graph.output[:]
    for name in names:
        size = f"{name}@magnitude"
        model.graph.node.append(helper.make_node("Abs", [name], [f"{name}@abs"]))
        model.graph.node.append(helper.make_node("ReduceMax", [f"{name}@abs"], [size], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(size, TensorProto.FLOAT, []))
    largest = dict.fromkeys(names, 0.0)
    for values in observed(model, file, feeds):
        for name, value in zip(names, values, strict=True):
            # max() would drop a NaN.
            largest[name] = float(np.maximum(largest[name], np.nan_to_num(value, nan=np.inf)))
    return largest


def observed(
    model: onnx.ModelProto, file: Path, feeds: Iterable[Mapping[str, NDArray[np.generic]]]
) -> Iterator[list[NDArray[Any]]]:
    """The outputs of a graph, for each of the inputs. file: what the graph was made of, whose
    weights it points into."""
    import onnxruntime

    looked_at = file.with_suffix(".observed.onnx")
    looked_at.write_bytes(model.SerializeToString())
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Folding would make float32 of all weights before the first run, which takes longer than it.
    kept = {"providers": ["CPUExecutionProvider"], "disabled_optimizers": ["ConstantFolding"]}
    try:
        session = onnxruntime.InferenceSession(str(looked_at), options, **kept)
    finally:
        looked_at.unlink()
    for feed in feeds:
        yield session.run(None, dict(feed))


def too_large(largest: Mapping[str, float]) -> tuple[str, ...]:
    """The tensors that float16 might not hold."""
    return tuple(name for name, value in largest.items() if not value * HEADROOM < LARGEST)


def write_report(file: Path, largest: Mapping[str, Mapping[str, float]]) -> None:
    """Every tensor's largest magnitude by network, the largest first; null where it is infinite."""
    report = {
        network: {
            name: float(f"{value:.4g}") if math.isfinite(value) else None
            for name, value in sorted(values.items(), key=lambda item: -item[1])
        }
        for network, values in largest.items()
    }
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def convert(
    model: onnx.ModelProto, weights: Mapping[str, Weight], precision: str, kept: Sequence[str]
) -> dict[str, Weight]:
    """Types the float32 graph for a precision, with the tensors `kept` in float32.

    `model` is changed; the weights of its initializers are returned.
    """
    if precision == "fp32":
        return dict(weights)
    return _Typing(model, weights, PRECISIONS[precision], frozenset(kept)).run()


def as_rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph computed in float32, with every half-precision tensor rounded to its type when
    it is written: as devices compute it that sum in float32 (all of ours do).

    What a CPU without half precision makes of the graph as it is tells less: it drops the pairs of
    casts between its float32 kernels, and with them roundings and overflows.
    """
    known, wide = types(model), dict[str, str]()
    halves = FLOATS - {TensorProto.FLOAT}
    nodes = []
    for node in model.graph.node:
        moved = [] if node.op_type == "Cast" else [n for n in node.input if known.get(n) in halves]
        for name in moved:
            if name not in wide:
                wide[name] = f"{name}@wide"
                nodes.append(_cast(name, wide[name], TensorProto.FLOAT))
        if moved:
            node.input[:] = [wide.get(name, name) for name in node.input]
        nodes.append(node)
        for k, name in enumerate(node.output):
            if moved and known.get(name) in halves:
                node.output[k] = f"{name}@exact"
                nodes.append(_cast(f"{name}@exact", name, known[name]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class _Typing:
    """One graph on its way to half precision."""

    def __init__(
        self,
        model: onnx.ModelProto,
        weights: Mapping[str, Weight],
        half: int,
        kept: frozenset[str],
    ) -> None:
        self.graph, self.half, self.kept = model.graph, half, kept
        self.weights, self.known = weights, types(model)
        self.initializers = {i.name: i for i in self.graph.initializer}
        self.made: dict[tuple[str, int], str] = {}  # a tensor in a type → its name there
        self.nodes: list[onnx.NodeProto] = []
        self.typed: list[TensorProto] = []
        self.of: dict[str, Weight] = {}

    def run(self) -> dict[str, Weight]:
        outputs = {o.name: f"{o.name}@half" for o in self.graph.output}
        for node in list(self.graph.node):
            self._node(node)
        for output in self.graph.output:
            if self.known[output.name] in FLOATS - {TensorProto.FLOAT}:
                inner = outputs[output.name]
                for node in self.nodes:
                    for names in (node.input, node.output):
                        for k, name in enumerate(names):
                            if name == output.name:
                                names[k] = inner
                self.nodes.append(_cast(inner, output.name, TensorProto.FLOAT))
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(self.typed)
        return self.of

    def _node(self, node: onnx.NodeProto) -> None:
        floats = [name for name in (*node.input, *node.output) if self._float(name)]
        exact = (
            node.op_type in EXACT_OPERATORS
            or any(name in self.kept for name in floats)
            or any(node.name.startswith(prefix) for prefix in EXACT_NAMES)
        )
        kind = TensorProto.FLOAT if exact else self.half
        for k, name in enumerate(node.input):
            scales = node.op_type == "Resize" and k == 2  # always float32
            wanted = TensorProto.FLOAT if scales else kind
            if name:
                node.input[k] = self._as(name, wanted)
        if node.op_type == "Cast":
            to = next(a for a in node.attribute if a.name == "to")
            if to.i == TensorProto.FLOAT:
                to.i = kind
        for name in node.output:
            if self._float(name):
                self.known[name] = kind
        if node.op_type == "Attention":
            node.attribute.append(helper.make_attribute("softmax_precision", TensorProto.FLOAT))
        self.nodes.append(node)

    def _float(self, name: str) -> bool:
        return self.known.get(name) in FLOATS

    def _as(self, name: str, wanted: int) -> str:
        """The tensor in that type, cast or stored in it where it is not."""
        kind = wanted if self._float(name) else self.known[name]
        if name in self.initializers:
            if (name, kind) not in self.made:
                self.made[name, kind] = self._store(name, kind)
            return self.made[name, kind]
        if self.known[name] == kind:
            return name
        if (name, kind) not in self.made:
            self.made[name, kind] = f"{name}@{'f32' if kind == TensorProto.FLOAT else 'half'}"
            self.nodes.append(_cast(name, self.made[name, kind], kind))
        return self.made[name, kind]

    def _store(self, name: str, kind: int) -> str:
        stored = TensorProto()
        stored.CopyFrom(self.initializers[name])
        both = any(known == name for known, _ in self.made)
        stored.name = f"{name}@{kind}" if both else name
        if name in self.weights:
            stored.data_type = kind
            self.of[stored.name] = self.weights[name]
        elif kind != stored.data_type:
            values = numpy_helper.to_array(stored).astype(helper.tensor_dtype_to_np_dtype(kind))
            stored.CopyFrom(numpy_helper.from_array(values, stored.name))
        self.typed.append(stored)
        return stored.name


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}@cast", to=kind)
