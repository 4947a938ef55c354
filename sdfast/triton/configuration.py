"""config.pbtxt: what Triton has to know of a model, as protobuf's text of its ModelConfig.

Requests are one picture each, of any size: max_batch_size is 0, since Triton batches tensors of one
shape alone, and pictures of a request are not them. All inputs but the prompt may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..bundle import Network
from ..tensors import TensorSpec

_TYPES = {
    "f32": "TYPE_FP32",
    "f16": "TYPE_FP16",
    "i32": "TYPE_INT32",
    "i64": "TYPE_INT64",
    "u8": "TYPE_UINT8",
}
KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}


@dataclass(frozen=True)
class Field:
    """An input or output. kind: Triton's name of its type; sides: −1 where one may vary."""

    name: str
    kind: str
    sides: tuple[int, ...]
    optional: bool = False


INPUTS = (
    Field("prompt", "TYPE_STRING", (1,)),
    Field("negative_prompt", "TYPE_STRING", (1,), optional=True),
    Field("seed", "TYPE_UINT64", (1,), optional=True),
    Field("steps", "TYPE_INT32", (1,), optional=True),
    Field("sampler", "TYPE_STRING", (1,), optional=True),
    Field("schedule", "TYPE_STRING", (1,), optional=True),
    Field("guidance", "TYPE_FP64", (1,), optional=True),  # 7.1 is another number in 32 bits
    Field("width", "TYPE_INT32", (1,), optional=True),
    Field("height", "TYPE_INT32", (1,), optional=True),
)
"""Parameters of sdfast.Request, by their names."""

OUTPUTS = (
    Field("image", "TYPE_UINT8", (-1, -1, 3)),
    Field("seed", "TYPE_UINT64", (1,)),
)


def of_bundle(name: str, device: str, instances: int, parameters: Mapping[str, str]) -> str:
    """Of the model that draws. parameters: of sdfast.load, that `model` opens the bundle with."""
    return "\n".join(
        (
            f"name: {_text(name)}",
            'backend: "python"',
            "max_batch_size: 0",
            *(_field("input", one) for one in INPUTS),
            *(_field("output", one) for one in OUTPUTS),
            _instances(device, instances),
            "model_transaction_policy { decoupled: false }",
            *(
                f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
                for key, value in parameters.items()
            ),
            "",
        )
    )


def of_network(name: str, network: Network, device: str) -> str:
    """Of one network alone."""
    return "\n".join(
        (
            f"name: {_text(name)}",
            'platform: "onnxruntime_onnx"',
            "max_batch_size: 0",
            *(_field("input", one) for one in _fields(network.inputs)),
            *(_field("output", one) for one in _fields(network.outputs)),
            _instances(device, 1),
            "",
        )
    )


def _fields(tensors: Mapping[str, TensorSpec]) -> Iterable[Field]:
    for name, spec in tensors.items():
        sides = tuple(-1 if side is None else side for side in spec.shape)
        yield Field(name, _TYPES[spec.dtype], sides)


def _field(role: str, one: Field) -> str:
    sides = ", ".join(map(str, one.sides))
    optional = " optional: true" if one.optional else ""
    return f"{role} {{ name: {_text(one.name)} data_type: {one.kind} dims: [ {sides} ]{optional} }}"


def _instances(device: str, count: int) -> str:
    return f"instance_group {{ count: {count} kind: {KINDS[device]} }}"


def _text(value: str) -> str:
    """A string of protobuf's text format: JSON's escapes are among its own."""
    return json.dumps(value)
