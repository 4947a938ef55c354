"""The networks of Stable Diffusion as ONNX graphs, each a function of a configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How graphs are written. Every form computes the same.

    fused_attention: `Attention` as one operator; else matrix products and Softmax
    fused_norms: `GroupNormalization` as one operator; else InstanceNormalization, Mul and Add
    fused_projections: the queries, keys and values of self-attention as one matrix product
    hoisted_context: keys and values of cross-attention come from the network context_projection
    hoisted_time: the embedded time comes, projected for each layer, from time_projection
    height, width: of a latent where they are fixed, else None
    """

    fused_attention: bool = True
    fused_norms: bool = True
    fused_projections: bool = True
    hoisted_context: bool = True
    hoisted_time: bool = True
    height: int | None = None
    width: int | None = None


PLAIN = Options(False, False, False, False, False)
