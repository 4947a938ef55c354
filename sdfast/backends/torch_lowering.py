"""An ONNX graph becomes calls of PyTorch's functions, in a precision of one's choice.

Half precision is what the exporter makes of it (export/precision.py): all tensors are of the half
type but where `networks.EXACT_OPERATORS` and `EXACT_NAMES` say float32; inputs and outputs stay
what they are in the graph. A graph that was exported in half precision has such types by itself:
they are kept, and widened for "fp32".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..networks import EXACT_NAMES, EXACT_OPERATORS
from ..tensors import TensorSpec
from . import first_line
from .torch_network import NAMES, Call, Known, Network, Stored
from .torch_operators import NUMBERS, OPERATORS, Compute

torch: Any = import_module("torch")
onnx: Any = import_module("onnx")

_ELEMENTS = onnx.TensorProto
_TYPES = {
    _ELEMENTS.FLOAT: torch.float32,
    _ELEMENTS.FLOAT16: torch.float16,
    _ELEMENTS.BFLOAT16: torch.bfloat16,
    _ELEMENTS.UINT8: torch.uint8,
    _ELEMENTS.INT8: torch.int8,
    _ELEMENTS.INT32: torch.int32,
    _ELEMENTS.INT64: torch.int64,
    _ELEMENTS.BOOL: torch.bool,
}
_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Rounding to eight bits is exact too, or the steps would not be those that were measured.
_EXACT = {*EXACT_OPERATORS, "QuantizeLinear", "DequantizeLinear"}


def lowered(file: Path, precision: str, pixels: str | None = None) -> Network:
    """The graph in `file`, computed in "fp32", "bf16" or "fp16".

    pixels: the precision of a graph that makes or reads pixels, if it is another
    Raises BundleError for a file that is no graph, or one that PyTorch's functions do not cover.
    """
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception as error:  # protobuf's own
        raise BundleError(
            f"{file} cannot be run ({first_line(error)}): export the bundle again"
        ) from error
    try:
        draws = any(v.type.tensor_type.elem_type == _ELEMENTS.UINT8 for v in _borders(graph))
        return _Lowering(graph, file, pixels if draws and pixels else precision).network()
    except ValueError as error:
        raise BundleError(
            f"{file} cannot be run by PyTorch here ({error}): use another backend, or export the "
            "bundle again"
        ) from error


class _Lowering:
    """One graph on its way to calls."""

    def __init__(self, graph: Any, file: Path, precision: str) -> None:
        self._graph, self._file = graph, file
        self._initializers = {i.name: i for i in graph.initializer}
        typed = _is_half(graph)
        self._half = None if typed else _HALVES.get(precision)
        self._widened = typed and precision == "fp32"
        self._shapes: set[str] = set()  # outputs of Shape: numbers, not tensors
        self._inputs = [v for v in graph.input if v.name not in self._initializers]
        self._tensors = {v.name for v in self._inputs}
        self._constants = dict.fromkeys(self._initializers)  # and what is made of them alone
        self._exactly: dict[str, bool] = {}  # weights → whether some call reads them in float32

    def network(self) -> Network:
        calls: list[Call] = []
        forming: list[Call] = []
        for node in self._graph.node:
            constant = bool(node.input) and all(n in self._constants for n in node.input if n)
            (forming if constant else calls).append(self._call(node, constant))
        outputs = _specs(self._graph.output)
        if missing := [name for name in outputs if name not in self._tensors]:
            raise ValueError(f"nothing computes {missing[0]}")
        read = {name for call in forming for name in call.inputs} | set(self._exactly)
        return Network(
            inputs=_specs(self._inputs),
            outputs=outputs,
            stored={n: self._stored(i) for n, i in self._initializers.items() if n in read},
            forming=_freeing(forming, ()),
            weights={name: self._weight_kind(exact) for name, exact in self._exactly.items()},
            calls=_freeing(calls, outputs),
            convolves=any(node.op_type == "Conv" for node in self._graph.node),
        )

    def _call(self, node: Any, constant: bool) -> Call:
        exact = node.op_type in _EXACT or node.name.startswith(EXACT_NAMES)
        numbers = NUMBERS.get(node.op_type, ())
        inputs = tuple(
            self._number(node, name) if k in numbers else self._tensor(node, name)
            for k, name in enumerate(node.input)
        )
        outputs = tuple(node.output)
        if constant:
            self._constants.update(dict.fromkeys(outputs))
            return Call(self._compute(node), inputs, outputs, None)
        for name in inputs:
            if isinstance(name, str) and name in self._constants:
                self._exactly[name] = self._exactly.get(name, False) or exact
        (self._shapes if node.op_type == "Shape" else self._tensors).update(outputs)
        kind = torch.float32 if exact and self._half is not None else self._half
        return Call(self._compute(node), inputs, outputs, kind)

    def _compute(self, node: Any) -> Compute:
        attributes = _attributes(node)
        if node.op_type == "Cast":
            target = self._kind(attributes["to"])
            return lambda x: x.to(target)
        if node.domain or node.op_type not in OPERATORS:
            raise ValueError(f"operator {node.op_type}, which {_named(node)} is, is not known")
        try:
            return OPERATORS[node.op_type](**attributes)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{node.op_type} {_named(node)}: {error}") from error

    def _number(self, node: Any, name: str) -> str | Known:
        """What is known when the graph is read, or with the shapes."""
        if not name:
            return Known(None)
        if name in self._initializers:
            return Known(tuple(onnx.numpy_helper.to_array(self._initializers[name]).tolist()))
        if name not in self._shapes:
            raise ValueError(f"{node.op_type} {_named(node)} depends on {name}, a result")
        return name

    def _tensor(self, node: Any, name: str) -> str | Known:
        if not name:
            return Known(None)
        if name in self._initializers:
            initializer = self._initializers[name]
            if not initializer.dims and _type(initializer.data_type).is_floating_point:
                # A number has no type of its own, which what it is multiplied by would take on.
                return Known(float(onnx.numpy_helper.to_array(initializer)))
        elif name not in self._tensors and name not in self._constants:
            raise ValueError(f"{node.op_type} {_named(node)} reads {name}, which is no tensor")
        return name

    def _stored(self, initializer: Any) -> Stored:
        elements: bytes | Path
        offset = 0
        if initializer.data_location == _ELEMENTS.EXTERNAL:
            entries = {entry.key: entry.value for entry in initializer.external_data}
            elements = self._file.parent / entries.get("location", "")
            offset = int(entries.get("offset", 0))
        else:
            elements = initializer.raw_data or onnx.numpy_helper.to_array(initializer).tobytes()
        return Stored(tuple(initializer.dims), _type(initializer.data_type), elements, offset)

    def _weight_kind(self, exact: bool) -> Any:
        if self._half is None:
            return torch.float32 if self._widened else None
        return torch.float32 if exact else self._half

    def _kind(self, element: int) -> Any:
        kind = _type(element)
        return torch.float32 if self._widened and kind.is_floating_point else kind


def _is_half(graph: Any) -> bool:
    """Whether the graph computes in half precision by itself: weights may be stored in it alone."""
    halves = set(_HALVES.values())
    constants = {i.name: _type(i.data_type) for i in graph.initializer}
    for node in graph.node:
        target = _type(_attributes(node)["to"]) if node.op_type == "Cast" else None
        read = [name for name in node.input if name]
        if read and all(name in constants for name in read):
            kind = target or constants[read[0]]
            constants.update(dict.fromkeys(node.output, kind))
        elif target in halves or any(constants.get(name) in halves for name in read):
            return True
    return False


def _freeing(calls: Sequence[Call], outputs: Iterable[str]) -> tuple[Call, ...]:
    """The calls, each told what it is the last to read or to write."""
    needed, found = set(outputs), list[Call]()
    for call in reversed(calls):
        names = {name for name in (*call.inputs, *call.outputs) if isinstance(name, str)}
        found.append(replace(call, frees=tuple(sorted(names - needed))))
        needed |= names
    return tuple(reversed(found))


def _borders(graph: Any) -> list[Any]:
    return [*graph.input, *graph.output]


def _named(node: Any) -> str:
    return node.name or "without a name"


def _type(element: int) -> Any:
    if element not in _TYPES:
        raise ValueError(f"element type {element} is not known")
    return _TYPES[element]


def _attributes(node: Any) -> dict[str, Any]:
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in found.items()}


def _specs(values: Iterable[Any]) -> dict[str, TensorSpec]:
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        kind = _type(tensor.elem_type)
        if kind not in NAMES:
            raise ValueError(f"{value.name} is {kind}")
        sides = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found[value.name] = TensorSpec(NAMES[kind], tuple(sides))
    return found
