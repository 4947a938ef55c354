"""Layers that several networks share. `path` is a module's name in diffusers or transformers: its
weights are found by it, and its output is named by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import Graph
from . import Options


def conv(g: Graph, x: str, path: str, *, stride: int = 1, pads: Sequence[int] = ()) -> str:
    """A convolution; its zero padding keeps the size unless `pads` (top, left, bottom, right)."""
    side = g.shapes[f"{path}.weight"][2]
    inputs = [x, g.weight(f"{path}.weight")]
    if g.has(f"{path}.bias"):
        inputs.append(g.weight(f"{path}.bias"))
    around = list(pads) or [side // 2] * 4
    return g.add("Conv", *inputs, name=path, strides=[stride, stride], pads=around)


def linear(
    g: Graph, x: str, path: str, parts: Sequence[str] = (), rows: tuple[int, int] | None = None
) -> str:
    """x [B, n, in] → [B, n, out].

    parts: modules whose outputs lie side by side; rows: of one module alone these outputs
    """
    modules = parts or [path]
    kernels, biases = ([f"{m}.{part}" for m in modules] for part in ("weight", "bias"))
    weight = g.weight(f"{path}.weight", kernels, rows=rows, turned=True)
    if not g.has(biases[0]):
        return g.add("MatMul", x, weight, name=path)
    y = g.add("MatMul", x, weight, name=f"{path}.product")
    return g.add("Add", y, g.weight(f"{path}.bias", biases, rows=rows), name=path)


def gemm(g: Graph, x: str, path: str, parts: Sequence[str] = ()) -> str:
    """x [B, in] → [B, out]: one operator, with the weight as the checkpoint has it."""
    modules = parts or [path]
    weight = g.weight(f"{path}.weight", [f"{m}.weight" for m in modules])
    inputs = [x, weight]
    if g.has(f"{modules[0]}.bias"):
        inputs.append(g.weight(f"{path}.bias", [f"{m}.bias" for m in modules]))
    return g.add("Gemm", *inputs, name=path, transB=1)


def silu(g: Graph, x: str, name: str) -> str:
    """x · sigmoid(x)."""
    return g.add("Mul", x, g.add("Sigmoid", x, name=f"{name}.sigmoid"), name=f"{name}.silu")


def group_norm(g: Graph, options: Options, x: str, path: str, groups: int, epsilon: float) -> str:
    """x [B, C, h, w] normalized over each of `groups` groups of channels."""
    scale, bias = f"{path}.weight", f"{path}.bias"
    if options.fused_norms:
        inputs = [x, g.weight(scale), g.weight(bias)]
        return g.add("GroupNormalization", *inputs, name=path, num_groups=groups, epsilon=epsilon)
    shape = g.add("Shape", x, name=f"{path}.shape")
    grouped = g.add("Reshape", x, g.integers([0, groups, -1]), name=f"{path}.grouped")
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    plain = [grouped, g.constant(ones, "ones"), g.constant(zeros, "zeros")]
    y = g.add("InstanceNormalization", *plain, name=f"{path}.normal", epsilon=epsilon)
    y = g.add("Reshape", y, shape, name=f"{path}.reshaped")
    channels = (g.shapes[scale][0], 1, 1)
    y = g.add("Mul", y, g.weight(scale, shape=channels), name=f"{path}.scaled")
    return g.add("Add", y, g.weight(bias, shape=channels), name=path)


def layer_norm(g: Graph, x: str, path: str, epsilon: float = 1e-5) -> str:
    """x [B, n, C] normalized over C."""
    inputs = [x, g.weight(f"{path}.weight"), g.weight(f"{path}.bias")]
    return g.add("LayerNormalization", *inputs, name=path, axis=-1, epsilon=epsilon)


def as_tokens(g: Graph, x: str, path: str, channels: int) -> tuple[str, str]:
    """x [B, C, h, w] → tokens [B, h · w, C], and their picture [B, h, w, C].

    Channels go last before the sides become one: a backend that keeps them last moves nothing.
    """
    picture = g.add("Transpose", x, name=f"{path}.channels_last", perm=[0, 2, 3, 1])
    tokens = g.add("Reshape", picture, g.integers([0, -1, channels]), name=f"{path}.tokens")
    return tokens, picture


def as_picture(g: Graph, tokens: str, shape: str, path: str) -> str:
    """tokens [B, h · w, C] → [B, C, h, w]; shape: the integers B, h, w, C."""
    picture = g.add("Reshape", tokens, shape, name=f"{path}.sides")
    return g.add("Transpose", picture, name=f"{path}.channels_first", perm=[0, 3, 1, 2])


def attention(
    g: Graph,
    options: Options,
    q: str,
    k: str,
    v: str,
    name: str,
    heads: int,
    width: int,
    causal: int = 0,
) -> str:
    """softmax(q kᵀ / √(width / heads)) v by heads: q [B, m, width], k, v [B, n, width].

    causal: the number of tokens where each reads only those before it, else 0
    """
    if options.fused_attention:
        attributes = {"is_causal": 1} if causal else {}
        return g.add(
            "Attention", q, k, v, name=name, q_num_heads=heads, kv_num_heads=heads, **attributes
        )
    each = width // heads
    by_heads = g.integers([0, 0, heads, each])
    parts = []
    for x, letter, order in (
        (q, "q", [0, 2, 1, 3]),
        (k, "k", [0, 2, 3, 1]),
        (v, "v", [0, 2, 1, 3]),
    ):
        split = g.add("Reshape", x, by_heads, name=f"{name}.{letter}.heads")
        parts.append(g.add("Transpose", split, name=f"{name}.{letter}.turned", perm=order))
    scaled = g.add("Mul", parts[0], g.number(each**-0.5), name=f"{name}.q.scaled")
    scores = g.add("MatMul", scaled, parts[1], name=f"{name}.scores")
    if causal:
        mask = np.triu(np.full((causal, causal), np.finfo(np.float16).min, np.float32), 1)
        scores = g.add("Add", scores, g.constant(mask, "causal"), name=f"{name}.masked")
    shares = g.add("Softmax", scores, name=f"{name}.shares", axis=-1)
    y = g.add("MatMul", shares, parts[2], name=f"{name}.values")
    y = g.add("Transpose", y, name=f"{name}.back", perm=[0, 2, 1, 3])
    return g.add("Reshape", y, g.integers([0, 0, width]), name=name)


def self_attention(
    g: Graph,
    options: Options,
    x: str,
    path: str,
    heads: int,
    names: Sequence[str],
    out: str,
    causal: int = 0,
) -> str:
    """x [B, n, C] → [B, n, C]; names: of the modules of queries, keys and values in `path`."""
    modules = [f"{path}.{name}" for name in names]
    width = g.shapes[f"{modules[0]}.weight"][0]
    if options.fused_projections:
        together = linear(g, x, f"{path}.to_qkv", modules)
        parts = [f"{path}.{letter}" for letter in "qkv"]
        q, k, v = g.split("Split", together, names=parts, axis=-1, num_outputs=3)
    else:
        q, k, v = (linear(g, x, module) for module in modules)
    y = attention(g, options, q, k, v, f"{path}.attention", heads, width, causal)
    return linear(g, y, f"{path}.{out}")


def sinusoids(
    g: Graph, x: str, width: int, name: str, *, flip: bool = True, shift: float = 0.0
) -> str:
    """x [R] → [R, width]: cosines and sines of x times frequencies 1 … 1e-4 (arXiv:1706.03762).

    flip: cosines first; shift: diffusers' downscale_freq_shift
    """
    half = width // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0))
    frequencies = np.exp(exponents / np.float32(half - shift)).astype(np.float32)
    column = g.add("Unsqueeze", x, g.integers([1]), name=f"{name}.column")
    angles = g.add(
        "Mul", column, g.constant(frequencies, f"{name}.frequencies"), name=f"{name}.angles"
    )
    waves = [g.add(kind, angles, name=f"{name}.{kind.lower()}") for kind in ("Cos", "Sin")]
    return g.add("Concat", *(waves if flip else waves[::-1]), name=name, axis=-1)


def upsample(g: Graph, x: str, name: str) -> str:
    """[B, C, h, w] → [B, C, 2h, 2w], each pixel four times."""
    scales = g.constant(np.array([1, 1, 2, 2], np.float32), "doubled sides")
    return g.add(
        "Resize",
        x,
        "",
        scales,
        name=name,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
