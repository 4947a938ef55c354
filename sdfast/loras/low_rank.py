"""What one layer of a LoRA file adds to a weight, in float32.

    LoRA   ΔW = s · up @ down               Hu et al., arXiv:2106.09685
           ΔW = s · up @ mid @ down         Tucker form of a convolution, of LyCORIS
    LoHa   ΔW = s · (A1 @ B1) ∘ (A2 @ B2)   Hyeon-Woo et al., arXiv:2108.06098
    LoKr   ΔW = s · C ⊗ (A @ B)             Yeh et al. (LyCORIS), arXiv:2309.14859
    DoRA   W' = m · (W + ΔW) / ‖W + ΔW‖     Liu et al., arXiv:2402.09353

s is alpha/rank. A weight is [out, in] or [out, in, height, width], where 1 × 1 may be left out.
Outputs do not depend on each other: some rows of W' are those of W and ΔW, and of m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..floats import Array, widened

Parts = Mapping[str, Array]
"""A layer's tensors in the file by the part they play; see PARTS."""
Matrix = NDArray[np.float32]

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


def scale(parts: Parts, alpha: float | None, root: bool) -> float:
    """s: alpha/rank, 1 without alpha. root: rsLoRA, arXiv:2312.03732, divides by √rank."""
    divisor = rank(parts)
    if alpha is None or divisor is None:
        return 1.0
    return alpha / (math.sqrt(divisor) if root else divisor)


def difference(parts: Parts, shape: tuple[int, ...]) -> Matrix:
    """ΔW/s for a weight of that shape. Raises ValueError for parts that do not fit together, or are
    for another shape."""
    wide = {name: widened(tensor) for name, tensor in parts.items()}
    if "down" in wide:
        found = _lora(wide)
    else:
        found = _hadamard(wide) if "w1_b" in wide else _kronecker(wide)
    # LyCORIS writes a convolution as a matrix [out, in · height · width].
    one_by_one = all(side == 1 for side in (*found.shape[2:], *shape[2:]))
    flat = found.shape[0] == shape[0] and found.size == math.prod(shape)
    if found.shape != shape and not (flat and (found.ndim == 2 or one_by_one)):
        theirs, ours = ("×".join(map(str, one)) for one in (found.shape, shape))
        raise ValueError(f"{theirs} there, {ours} here")
    return found.reshape(shape)


def merged(weight: Matrix, difference: Matrix, magnitude: Matrix | None = None) -> Matrix:
    """W + ΔW; with a magnitude for each output DoRA's: the direction of its weights, with that
    length."""
    found = weight + difference
    if magnitude is None:
        return found
    flat = found.reshape(len(found), -1)
    flat *= (magnitude.reshape(len(flat)) / np.linalg.norm(flat, axis=1))[:, None]
    return found


def _lora(parts: Mapping[str, Matrix]) -> Matrix:
    up, down = _flat(parts["up"]), parts["down"]
    if "mid" in parts:
        return _tucker("or,rshw,si->oihw", up, parts["mid"], _flat(down))
    return (up @ _flat(down)).reshape(len(up), *down.shape[1:])


def _hadamard(parts: Mapping[str, Matrix]) -> Matrix:
    return _factored(parts, "w1", "t1") * _factored(parts, "w2", "t2")


def _kronecker(parts: Mapping[str, Matrix]) -> Matrix:
    first = parts["kron_w1"] if "kron_w1" in parts else _factored(parts, "kron_w1", "")
    second = parts["kron_w2"] if "kron_w2" in parts else _factored(parts, "kron_w2", "kron_t2")
    made: Matrix = np.kron(first.reshape(*first.shape, *(1 for _ in second.shape[2:])), second)
    return made


def _factored(parts: Mapping[str, Matrix], name: str, core: str) -> Matrix:
    left, right = parts[f"{name}_a"], parts[f"{name}_b"]
    if core in parts:  # Tucker: the outer factors are [rank, out] and [rank, in]
        return _tucker("rshw,ro,si->oihw", parts[core], left, right)
    return left @ _flat(right)


def _tucker(sum_over: str, *factors: Matrix) -> Matrix:
    made: Matrix = np.einsum(sum_over, *factors, optimize=True)
    return made


def _flat(tensor: Matrix) -> Matrix:
    return tensor.reshape(len(tensor), -1)
