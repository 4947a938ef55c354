"""CLIP's text encoders (arXiv:2103.00020), OpenAI's and OpenCLIP's, in transformers' naming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ..graph import Graph
from . import Options
from .layers import gemm, layer_norm, linear, self_attention

ACTIVATIONS = ("quick_gelu", "gelu")
LEGACY_END = 2  # an end-of-text id that means: the largest id of the text


def text_encoder(
    shapes: Mapping[str, Sequence[int]],
    config: Mapping[str, Any],
    options: Options,
    *,
    penultimate: bool,
) -> Graph:
    """tokens i32 [B, 77] → context [B, 77, C], hidden [B, K, 77, C], and pooled [B, P] where the
    encoder projects it.

    penultimate: the context is the input of the last layer, as SDXL reads it; else its output,
        normalized
    hidden: what the context is with the last 1, 2, … K of its layers left out ("clip skip")
    """
    if config.get("hidden_act", "quick_gelu") not in ACTIVATIONS:
        raise CheckpointError(
            f"the text encoder's hidden_act is {config['hidden_act']!r}; only "
            f"{' and '.join(ACTIVATIONS)} can be exported"
        )
    if config["num_attention_heads"] < 1:
        raise CheckpointError("the text encoder's num_attention_heads is below 1: mend its config")
    g = Graph(shapes)
    at = "text_model." if g.has("text_model.final_layer_norm") else ""
    length, width = g.shapes[f"{at}embeddings.position_embedding.weight"]
    tokens = g.input("tokens", "i32", ["batch", length])
    embedding = g.weight(f"{at}embeddings.token_embedding.weight")
    x = g.add("Gather", embedding, tokens, name=f"{at}embeddings.token_embedding", axis=0)
    places = g.weight(f"{at}embeddings.position_embedding.weight")
    states = [g.add("Add", x, places, name=f"{at}embeddings")]
    pools = g.has("text_projection")
    layers = g.children(f"{at}encoder.layers")
    for path in layers if pools or not penultimate else layers[:-1]:
        states.append(_layer(g, config, options, states[-1], path, length))
    read = states[: len(layers)] if penultimate else states
    norm = f"{at}final_layer_norm"
    hidden = _hidden(g, config, read, "" if penultimate else norm, (length, width))
    context = read[-1] if penultimate else ""
    last = _norm(g, config, states[-1], norm) if pools or not penultimate else ""
    g.output("context", "f32", ["batch", length, width], context or last)
    if hidden:
        g.output("hidden", "f32", ["batch", len(read) - 1, length, width], hidden)
    if pools:
        # Renaming an output renames its readers too, so that `last` may be "context" by now.
        pooled = _pooled(g, config, tokens, "context" if not context else last)
        pooled = gemm(g, pooled, "text_projection")
        g.output("pooled", "f32", ["batch", g.shapes["text_projection.weight"][0]], pooled)
    return g


def _hidden(
    g: Graph, config: Mapping[str, Any], states: Sequence[str], norm: str, sides: Sequence[int]
) -> str:
    """The states [B, *sides] but the last, as [B, K, *sides], the latest first; `norm`: the layer
    that normalizes them, if one does."""
    if len(states) == 1:
        return ""
    x = g.add("Concat", *states[-2::-1], name="hidden.joined", axis=1)
    if norm:
        x = _norm(g, config, x, norm)
    shape = g.integers([0, len(states) - 1, *sides])
    return g.add("Reshape", x, shape, name="hidden.layers")


def _norm(g: Graph, config: Mapping[str, Any], x: str, path: str) -> str:
    return layer_norm(g, x, path, config.get("layer_norm_eps", 1e-5))


def _layer(
    g: Graph, config: Mapping[str, Any], options: Options, x: str, path: str, length: int
) -> str:
    heads, names = config["num_attention_heads"], ("q_proj", "k_proj", "v_proj")
    y = _norm(g, config, x, f"{path}.layer_norm1")
    y = self_attention(g, options, y, f"{path}.self_attn", heads, names, "out_proj", causal=length)
    x = g.add("Add", y, x, name=f"{path}.attended")
    y = _norm(g, config, x, f"{path}.layer_norm2")
    y = linear(g, y, f"{path}.mlp.fc1")
    if config.get("hidden_act", "quick_gelu") == "gelu":
        y = g.add("Gelu", y, name=f"{path}.mlp.gelu")
    else:
        scaled = g.add("Mul", y, g.number(1.702), name=f"{path}.mlp.scaled")
        y = g.add(
            "Mul", y, g.add("Sigmoid", scaled, name=f"{path}.mlp.sigmoid"), name=f"{path}.mlp.gelu"
        )
    return g.add("Add", linear(g, y, f"{path}.mlp.fc2"), x, name=path)


def _pooled(g: Graph, config: Mapping[str, Any], tokens: str, x: str) -> str:
    """x at each text's first end-of-text token."""
    end = config.get("eos_token_id", LEGACY_END)
    ids = tokens
    if end != LEGACY_END:
        ids = g.add("Equal", tokens, g.constant(np.array(end, np.int32), "end"), name="is_end")
        ids = g.add("Cast", ids, name="is_end.number", to=6)
    place = g.add("ArgMax", ids, name="end.place", axis=-1, keepdims=1)
    return g.add("GatherND", x, place, name="at_end", batch_dims=1)
