"""Random weights that keep activations of order 1: each tensor from a generator of its own."""

from __future__ import annotations

import hashlib
import math

import torch

# What is added to a residual stream is scaled down, or dozens of layers would add up.
_RESIDUAL = ("conv2.weight", "to_out.0.weight", "ff.net.2.weight", "out_proj.weight", "fc2.weight")
# ControlNet starts training with zeros here; random ones are small, but do something.
_ZERO_CONVOLUTIONS = ("controlnet_down_blocks.", "controlnet_mid_block.")


def random_weight(name: str, like: torch.Tensor, seed: int) -> torch.Tensor:
    """The weight of that name in `like`'s shape and dtype; equal for equal seeds on every machine.

    Matrices and kernels: uniform, of variance 1 / inputs, which keeps a unit normal's variance.
    Gains of norms: 1 ± 0.1. Embeddings: variance 1. Biases: ± 0.1.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    made = torch.empty(like.shape, dtype=torch.float32)
    if like.ndim > 1:
        bound = math.sqrt(3) * _deviation(name, like)
        return made.uniform_(-bound, bound, generator=generator).to(like.dtype)
    made.uniform_(-0.1, 0.1, generator=generator)
    return made.add_(1.0 if name.endswith("weight") else 0.0).to(like.dtype)


def _deviation(name: str, like: torch.Tensor) -> float:
    if "embeddings." in name:
        return 1.0
    deviation = 1 / math.sqrt(math.prod(like.shape[1:]))
    if name.split("/")[-1].startswith(_ZERO_CONVOLUTIONS):
        return 0.3 * deviation
    return deviation * (0.5 if name.endswith(_RESIDUAL) else 1.0)
