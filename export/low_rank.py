"""What one layer of a LoRA file adds to a weight, in float32.

    LoRA   ΔW = s · up @ down               Hu et al., arXiv:2106.09685
           ΔW = s · up @ mid @ down         Tucker form of a convolution, of LyCORIS
    LoHa   ΔW = s · (A1 @ B1) ∘ (A2 @ B2)   Hyeon-Woo et al., arXiv:2108.06098
    LoKr   ΔW = s · C ⊗ (A @ B)             Yeh et al. (LyCORIS), arXiv:2309.14859
    DoRA   W' = m · (W + ΔW) / ‖W + ΔW‖     Liu et al., arXiv:2402.09353

s is alpha/rank. A weight is [out, in] or [out, in, height, width], where 1 × 1 may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

Parts = Mapping[str, torch.Tensor]
"""A layer's tensors in the file by the part they play; see PARTS."""

PARTS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora_mid.weight": "mid",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "alpha": "alpha",
    **{f"hada_{part}": part for part in ("t1", "t2", "w1_a", "w1_b", "w2_a", "w2_b")},
    **{f"lokr_{part}": f"kron_{part}" for part in ("t2", "w1", "w1_a", "w1_b")},
    **{f"lokr_{part}": f"kron_{part}" for part in ("w2", "w2_a", "w2_b")},
}
"""How a tensor's name ends → its part."""

REFUSED = {
    "dora_scale": "DoRA in kohya's form, whose tools differ in what it means",
    "lora_B.bias": "trained biases",
    "lora_up.bias": "trained biases",
    "diff": "whole differences of weights",
    "diff_b": "differences of biases",
    "w_norm": "trained norms",
    "b_norm": "trained norms",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "oft_R.weight": "OFT",
    "boft_R": "BOFT",
    "a1.weight": "GLoRA",
    "on_input": "(IA)³",
    "lora_embedding_A": "LoRA of an embedding",
    "lora_embedding_B": "LoRA of an embedding",
}
"""How a tensor's name ends → the method it tells of, which is not implemented."""


FORMS = (
    {"down", "up"},
    {"w1_a", "w1_b", "w2_a", "w2_b"},
    {"kron_w1", "kron_w2"},
    {"kron_w1", "kron_w2_a", "kron_w2_b"},
    {"kron_w1_a", "kron_w1_b", "kron_w2"},
    {"kron_w1_a", "kron_w1_b", "kron_w2_a", "kron_w2_b"},
)
"""Parts that a layer is computed from; Tucker cores, alpha and magnitude come in addition."""


def missing(parts: Parts) -> str | None:
    """A part that the layer needs and lacks."""
    form = min(FORMS, key=lambda one: (-len(one & set(parts)), len(one - set(parts))))
    return next(iter(sorted(form - set(parts))), None)


def rank(parts: Parts) -> int | None:
    """What alpha is divided by; None where nothing is factored and alpha does not count."""
    for factor in ("down", "w1_b", "kron_w1_b", "kron_w2_b"):
        if factor in parts:
            return len(parts[factor])
    return None


def difference(parts: Parts) -> torch.Tensor:
    """ΔW/s [out, in] or [out, in, height, width]; a convolution that LyCORIS wrote as a matrix is
    [out, in · height · width].

    Raises RuntimeError for parts that do not fit together.
    """
    wide = {name: tensor.float() for name, tensor in parts.items()}
    if "down" in wide:
        return _lora(wide)
    return _hadamard(wide) if "w1_b" in wide else _kronecker(wide)


def decomposed(weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA: the direction of each output's weights with a trained length."""
    length = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    each = (-1, *(1 for _ in weight.shape[1:]))
    return weight * (magnitude.float().reshape(len(length)) / length).reshape(each)


def scale(parts: Parts, alpha: float | None, root: bool) -> float:
    """s: alpha/rank, 1 without alpha. root: rsLoRA, arXiv:2312.03732, divides by √rank."""
    divisor = rank(parts)
    if alpha is None or divisor is None:
        return 1.0
    return alpha / (math.sqrt(divisor) if root else divisor)


def _lora(parts: Parts) -> torch.Tensor:
    up, down = parts["up"].flatten(1), parts["down"]
    if "mid" in parts:
        return torch.einsum("or,rshw,si->oihw", up, parts["mid"], down.flatten(1))
    return (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def _hadamard(parts: Parts) -> torch.Tensor:
    first = _factored(parts, "w1", "t1")
    return first * _factored(parts, "w2", "t2")


def _kronecker(parts: Parts) -> torch.Tensor:
    first = parts["kron_w1"] if "kron_w1" in parts else _factored(parts, "kron_w1", "")
    second = parts["kron_w2"] if "kron_w2" in parts else _factored(parts, "kron_w2", "kron_t2")
    return torch.kron(
        first.reshape(*first.shape, *(1 for _ in second.shape[2:])), second.contiguous()
    )


def _factored(parts: Parts, name: str, core: str) -> torch.Tensor:
    left, right = parts[f"{name}_a"], parts[f"{name}_b"]
    if core in parts:  # Tucker: the outer factors are [rank, out] and [rank, in]
        return torch.einsum("rshw,ro,si->oihw", parts[core], left, right)
    return left @ right.flatten(1)
