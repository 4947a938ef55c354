"""Inputs of networks of every kind, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from sdfast import backends
from sdfast.backends import Options, torch_lowering, torch_network
from sdfast.tensors import Tensor, TensorSpec

Arrays = dict[str, NDArray[Any]]
ROWS, HEIGHT, WIDTH, TOKENS = 2, 8, 16, 77
_LARGEST = {"timestep": 999.0, "guidance": 8.0, "sizes": 1024.0, "condition": 1.0, "scale": 1.0}


def feed(inputs: Mapping[str, TensorSpec], seed: int = 0) -> Arrays:
    """Values like those that a run brings, for latents of HEIGHT × WIDTH."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for name, spec in inputs.items():
        sides = iter(_sides(name))
        shape = [next(sides) if side is None else side for side in spec.shape]
        if spec.dtype == "i32":
            found[name] = rng.integers(0, 100, shape, np.int32)
        elif spec.dtype == "u8":
            found[name] = rng.integers(0, 256, shape, np.uint8)
        elif name in _LARGEST:
            found[name] = rng.random(shape, np.float32) * np.float32(_LARGEST[name])
        else:
            found[name] = rng.standard_normal(shape, np.float32)
    return found


def _sides(name: str) -> tuple[int, ...]:
    """Those that may vary."""
    if name.startswith("residual_"):
        return 1, 1, 1, 1
    if name.startswith("adapter_"):
        return 1, 1, 1
    if name in ("image", "condition"):
        return ROWS, 8 * HEIGHT, 8 * WIDTH
    if name in ("context", "keys_values"):
        return ROWS, TOKENS
    return (ROWS, 4) if name == "image_keys_values" else (ROWS, HEIGHT, WIDTH)


def expected(file: Path, given: Arrays) -> Arrays:
    """By ONNX Runtime, in the types of the graph."""
    settings: Any = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    kept = {"providers": ["CPUExecutionProvider"]}
    session = onnxruntime.InferenceSession(str(file), settings, **kept)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def computed(file: Path, given: Arrays, like: Arrays, backend: str, options: Options) -> Arrays:
    """By a backend's engine, in memory that was filled with other values; the outputs of these
    shapes."""
    engine = backends.open_engine(file, backend, options)
    assert engine.inputs.keys() == given.keys()
    assert engine.outputs.keys() == like.keys()
    found = {name: np.full_like(array, 7) for name, array in like.items()}
    engine.bind({n: Tensor.from_dlpack(array) for n, array in {**given, **found}.items()})
    engine.run()
    engine.close()
    return found


def in_precision(file: Path, precision: str, given: Arrays) -> Arrays:
    """By PyTorch in a precision that this CPU may be slow in."""
    network = torch_lowering.lowered(file, precision)
    values = {name: torch.from_numpy(array) for name, array in given.items()}
    made = torch_network.run(network, {**values, **torch_network.read(network, "cpu")})
    return {n: value.numpy() for n, value in zip(network.outputs, made, strict=True)}


def distance(got: Arrays, want: Arrays) -> float:
    """The largest difference, in parts of the largest value; of pixels in levels."""
    return max(
        float(np.abs(got[n].astype(np.float64) - want[n]).max())
        / (1.0 if want[n].dtype == np.uint8 else max(float(np.abs(want[n]).max()), 1e-6))
        for n in want
    )
