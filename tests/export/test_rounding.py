"""Networks in half precision are verified with every tensor rounded, on any CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from sdfast.export import verify

TYPES = {
    "fp16": (TensorProto.FLOAT16, torch.float16),
    "bf16": (TensorProto.BFLOAT16, torch.bfloat16),
}


def chain(precision: str, file: Path, *factors: float) -> Path:
    """y = x · factors, one after the other, in that precision."""
    kind, _ = TYPES[precision]
    nodes = [helper.make_node("Cast", ["x"], ["x0"], to=kind)]
    nodes += [
        helper.make_node("Mul", [f"x{k}", f"factor{k}"], [f"x{k + 1}"]) for k in range(len(factors))
    ]
    nodes.append(helper.make_node("Cast", [f"x{len(factors)}"], ["y"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [helper.make_tensor(f"factor{k}", kind, [1], [f]) for k, f in enumerate(factors)],
    )
    opset = helper.make_opsetid("", 23)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=11), file)
    return file


@pytest.mark.parametrize("precision", TYPES)
def test_every_tensor_is_rounded(precision: str, tmp_path: Path) -> None:
    factors = (1.1, 0.7, 1.3)
    x = np.random.default_rng(0).standard_normal(1000, np.float32)
    got = verify.opened(chain(precision, tmp_path / "a.onnx", *factors), precision)({"x": x})["y"]
    rounded = torch.from_numpy(x).to(TYPES[precision][1])
    for factor in factors:
        rounded = rounded * torch.tensor(factor, dtype=rounded.dtype)
    assert np.array_equal(got, rounded.float().numpy())
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_what_float16_cannot_hold_overflows(tmp_path: Path) -> None:
    x = np.full(1, 30000, np.float32)
    y = verify.opened(chain("fp16", tmp_path / "a.onnx", 1000.0, 0.001), "fp16")({"x": x})["y"]
    assert np.isinf(y).all()
