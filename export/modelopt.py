"""ModelOpt, NVIDIA's quantizer: how large what each layer reads becomes on real runs.

It watches the torch module, as NVIDIA's own recipe for diffusers' models has it. Its way through
ONNX files is not taken: that loads a U-Net's weights four times over, passes in silence over all
that comes after a GroupNormalization, whose type onnx does not infer, and leaves copies of float32
weights in every graph.

https://github.com/NVIDIA/Model-Optimizer, `modelopt.torch.quantization`
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from typing import Any

from torch import nn

from ..errors import RecipeError

# Every layer's input, as one tensor; "max" is its largest magnitude, which no number of bits
# changes. What is rare counts as much as what is frequent: cut off (as "entropy" does), it made
# 1 - cosine of the demo's U-Net in int8 five times as large.
_WATCHED = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}},
    ],
    "algorithm": "max",
}
_INPUT = ".input_quantizer"


def require() -> Any:
    """The library. Raises RecipeError where it is not installed."""
    try:
        return import_module("modelopt.torch.quantization")
    except ImportError as error:
        raise RecipeError(
            "fp8 and int8 for TensorRT are calibrated by ModelOpt, which cannot be loaded "
            f"({str(error).splitlines()[0]}): pip install 'sdfast[modelopt]'"
        ) from error


def largest(module: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, float]:
    """By the path of each layer that `run` comes through, the largest magnitude of what it reads.
    `module` is changed: it is ModelOpt's afterwards."""
    library = require()
    with redirect_stdout(StringIO()):  # how many layers it watches
        library.quantize(module, _WATCHED, run)
    return {
        path.removesuffix(_INPUT): float(watched.amax)
        for path, watched in module.named_modules()
        if path.endswith(_INPUT) and watched.amax is not None
    }
