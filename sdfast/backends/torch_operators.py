"""ONNX's operators, as PyTorch computes them: those that the exporter's graphs have.

https://onnx.ai/onnx/operators: each entry of OPERATORS takes an operator's attributes, by their
names, and returns a function of its inputs, in their order; inputs that are left out are None.
Attributes that are not taken, or have other values than those understood, raise TypeError or
ValueError: nothing is computed in another way than the graph says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

torch: Any = import_module("torch")  # by its name, as it is not there for every backend
F: Any = torch.nn.functional

Compute = Callable[..., Any]
Operator = Callable[..., Compute]

NUMBERS: Mapping[str, tuple[int, ...]] = {
    "ReduceMean": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Unsqueeze": (1,),
}
"""The places of inputs that say how to compute: they are given as Python's numbers."""


def _plain(compute: Compute) -> Operator:
    """An operator without attributes."""
    return lambda: compute


# Products.


def _conv(
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    kernel_shape: Sequence[int] = (),  # the weight has it
) -> Compute:
    top, left, bottom, right = pads
    even = (top, left) == (bottom, right)

    def compute(x: Any, weight: Any, bias: Any = None) -> Any:
        # Channels last: the order that tensor cores read; what follows keeps it.
        x = x.contiguous(memory_format=torch.channels_last)
        if not even:
            x = F.pad(x, (left, right, top, bottom))
        padding = (top, left) if even else (0, 0)
        return F.conv2d(x, weight, bias, strides, padding, dilations, group)

    return compute


def _gemm(transB: int = 0) -> Compute:  # noqa: N803
    def compute(a: Any, b: Any, c: Any = None) -> Any:
        return F.linear(a, b if transB else b.t(), c)

    return compute


def _attention(
    q_num_heads: int,
    kv_num_heads: int,
    is_causal: int = 0,
    scale: float | None = None,
    softmax_precision: int = 1,  # float32, which it has in any case
) -> Compute:
    """Of tokens [B, n, heads · width]."""

    def by_heads(x: Any, heads: int) -> Any:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def compute(q: Any, k: Any, v: Any) -> Any:
        parts = by_heads(q, q_num_heads), by_heads(k, kv_num_heads), by_heads(v, kv_num_heads)
        y = F.scaled_dot_product_attention(*parts, is_causal=bool(is_causal), scale=scale)
        return y.transpose(1, 2).flatten(2)

    return compute


# Norms and sums.


def _group_norm(num_groups: int, epsilon: float = 1e-5, stash_type: int = 1) -> Compute:
    return lambda x, weight, bias: F.group_norm(x, num_groups, weight, bias, epsilon)


def _instance_norm(epsilon: float = 1e-5) -> Compute:
    return lambda x, weight, bias: F.instance_norm(x, weight=weight, bias=bias, eps=epsilon)


def _layer_norm(axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Compute:
    return lambda x, weight, bias=None: F.layer_norm(x, x.shape[axis:], weight, bias, epsilon)


def _softmax(axis: int = -1) -> Compute:
    return lambda x: torch.softmax(x, axis)


def _reduce_mean(keepdims: int = 1) -> Compute:
    return lambda x, axes: x.mean(axes, keepdim=bool(keepdims))


def _average_pool(kernel_shape: Sequence[int], strides: Sequence[int] = (1, 1)) -> Compute:
    return lambda x: F.avg_pool2d(x, kernel_shape, strides)


def _arg_max(axis: int = 0, keepdims: int = 1) -> Compute:
    return lambda x: torch.argmax(x, axis, keepdim=bool(keepdims))


# Activations.


def _gelu(approximate: str = "none") -> Compute:
    return lambda x: F.gelu(x, approximate=approximate)


def _clip(x: Any, low: Any = None, high: Any = None) -> Any:
    return torch.clamp(x, low, high)


# Shapes and places.


def _reshape(x: Any, shape: Sequence[int]) -> Any:
    return x.reshape([side or x.shape[k] for k, side in enumerate(shape)])


def _transpose(perm: Sequence[int]) -> Compute:
    return lambda x: x.permute(*perm)


def _unsqueeze(x: Any, axes: Sequence[int]) -> Any:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(axis: int) -> Compute:
    return lambda *parts: torch.cat(parts, axis)


def _split(axis: int = 0, num_outputs: int | None = None) -> Compute:
    def compute(x: Any, sizes: Sequence[int] | None = None) -> Any:
        count = num_outputs or 1
        return torch.split(x, -(-x.shape[axis] // count) if sizes is None else list(sizes), axis)

    return compute


def _slice(
    x: Any,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Any:
    parts = [slice(None)] * x.dim()
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        parts[axes[k] if axes else k] = slice(start, end, steps[k] if steps else 1)
    return x[tuple(parts)]


def _gather(axis: int = 0) -> Compute:
    def compute(x: Any, indices: Any) -> Any:
        found = torch.index_select(x, axis, indices.flatten())
        return found.unflatten(axis, indices.shape)

    return compute


def _gather_nd(batch_dims: int = 0) -> Compute:
    """One place of each row: x [B, n, …], places [B, 1] → [B, …]."""
    if batch_dims != 1:
        raise ValueError("GatherND of one place a row alone")

    def compute(x: Any, places: Any) -> Any:
        index = places.reshape(-1, *(1 for _ in x.shape[1:]))
        return torch.take_along_dim(x, index, 1).squeeze(1)

    return compute


# The two that repeat every pixel where a picture grows by a whole factor.
_NEAREST = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}


def _resize(
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
) -> Compute:
    if mode != "nearest" or (coordinate_transformation_mode, nearest_mode) not in _NEAREST:
        raise ValueError("Resize that repeats pixels alone")

    def compute(x: Any, _: None, scales: Sequence[float]) -> Any:
        factors = [int(scale) for scale in scales]
        if factors[:2] != [1, 1] or [*scales] != factors:
            raise ValueError("Resize of sides by whole factors alone")
        sides = [side * factor for side, factor in zip(x.shape[2:], factors[2:], strict=True)]
        return F.interpolate(x, sides, mode="nearest")

    return compute


# Eight bits.


def _quantize(x: Any, scale: float, zero: Any) -> Any:
    levels = torch.iinfo(zero.dtype)
    return torch.clamp(torch.round(x / scale) + zero, levels.min, levels.max).to(zero.dtype)


def _dequantize(axis: int = 1) -> Compute:
    def compute(x: Any, scale: Any, zero: Any = 0) -> Any:
        if not isinstance(scale, float):  # one for each place of the axis
            sides = [1] * x.dim()
            sides[axis] = -1
            scale = scale.reshape(sides)
        return (x.float() - zero) * scale

    return compute


def _divide(a: Any, b: Any) -> Any:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


OPERATORS: Mapping[str, Operator] = {
    "Add": _plain(lambda a, b: a + b),
    "ArgMax": _arg_max,
    "Attention": _attention,
    "AveragePool": _average_pool,
    "Clip": _plain(_clip),
    "Concat": _concat,
    "Conv": _conv,
    "Cos": _plain(lambda x: torch.cos(x)),
    "DequantizeLinear": _dequantize,
    "Div": _plain(_divide),
    "Equal": _plain(lambda a, b: torch.eq(a, b)),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "Identity": _plain(lambda x: x),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _plain(lambda a, b: torch.matmul(a, b)),
    "Mul": _plain(lambda a, b: a * b),
    "Neg": _plain(lambda x: -x),
    "QuantizeLinear": _plain(_quantize),
    "ReduceMean": _reduce_mean,
    "Relu": _plain(lambda x: torch.relu(x)),
    "Reshape": _plain(_reshape),
    "Resize": _resize,
    "Round": _plain(lambda x: torch.round(x)),
    "Shape": _plain(lambda x: tuple(x.shape)),
    "Sigmoid": _plain(lambda x: torch.sigmoid(x)),
    "Sin": _plain(lambda x: torch.sin(x)),
    "Slice": _plain(_slice),
    "Softmax": _softmax,
    "Split": _split,
    "Sub": _plain(lambda a, b: a - b),
    "Tanh": _plain(lambda x: torch.tanh(x)),
    "Transpose": _transpose,
    "Unsqueeze": _plain(_unsqueeze),
}
"""All but Cast, whose attribute is a type."""
