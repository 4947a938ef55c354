"""Compares networks, as exported, with the modules that they were exported from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from ..bundle import Difference
from ..errors import VerificationError
from . import precision as precisions
from .networks import Options
from .plan import Planned, Values, outputs

Arrays = dict[str, NDArray[Any]]
Compute = Callable[[Mapping[str, NDArray[Any]]], Arrays]


@dataclass(frozen=True)
class Bound:
    """What is allowed: the largest relative difference and the least cosine of float outputs; the
    mean and the largest difference of pixels, in levels of 255; the least PSNR of a picture."""

    relative: float
    cosine: float
    mean_levels: float
    levels: float
    decibels: float


# float32 sums in another order over some hundred layers; half precision rounds after each of them;
# int8 rounds whole tensors to eight bits, of which quiet channels get few: to group norms of one
# channel each, as tiny models have them, that matters most (cosine 0.94; 0.998 with several). The
# picture of a model with random weights, whose steps do not correct each other, is at 13 dB, a
# trained one's at 34.
BOUNDS = {
    "fp32": Bound(1e-3, 0.99999, 0.1, 1.0, 40.0),
    "fp16": Bound(0.05, 0.999, 1.0, 32.0, 25.0),
    "bf16": Bound(0.25, 0.99, 4.0, 128.0, 18.0),
    "int8": Bound(0.5, 0.9, 4.0, 128.0, 10.0),
    "int8-fp16": Bound(0.5, 0.9, 4.0, 128.0, 10.0),
    "fp8": Bound(0.5, 0.9, 4.0, 128.0, 10.0),
}


@dataclass(frozen=True)
class Example:
    """Inputs of a network, in the form without hoisting, and what its outputs must be."""

    inputs: Values
    expected: Values


def examples(planned: Planned, module: nn.Module, unit: int, options: Options) -> list[Example]:
    """Two batch sizes, two resolutions, as far as the options fix none. unit: what the sides of a
    latent are multiples of."""
    made = []
    for seed, (batch, high, wide) in enumerate([(1, 4, 4), (2, 2, 3)]):
        height, width = options.height or high * unit, options.width or wide * unit
        inputs = random_inputs(planned, planned.shapes(batch, height, width), seed)
        made.append(example(planned, module, inputs))
    return made


def example(planned: Planned, module: nn.Module, inputs: Values) -> Example:
    """These inputs, and what the module makes of them."""
    with torch.no_grad():
        return Example(inputs, planned.reference(module, inputs))


def random_inputs(planned: Planned, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Values:
    """Values like those that a run brings, for each input."""
    g = torch.Generator().manual_seed(seed)
    spread = {"timestep": 999.0, "guidance": 8.0, "sizes": 1024.0, "condition": 1.0, "scale": 1.0}
    made: Values = {}
    for name, shape in shapes.items():
        if name == "tokens":
            words = next(s for n, s in planned.graph.shapes.items() if "token_embedding" in n)[0]
            made[name] = torch.randint(0, words, shape, generator=g, dtype=torch.int32)
        elif name == "image":
            made[name] = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
        elif name == "image_keys_values":  # which only adapters' own weights give
            made[name] = torch.zeros(shape)
        elif name in spread:
            made[name] = torch.rand(shape, generator=g) * spread[name]
        else:
            made[name] = torch.randn(shape, generator=g)
    return made


def opened(file: Path, precision: str) -> Compute:
    """The network in `file` as a function of arrays, every tensor rounded to its precision."""
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Copies of the weights in another order or type would double the memory for a handful of runs.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Its threads would go on waiting in a loop on the cores that torch needs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    kept = {"providers": ["CPUExecutionProvider"], "disabled_optimizers": ["ConstantFolding"]}
    with _rounded(file, precision) as rounded:
        session = onnxruntime.InferenceSession(str(rounded), options, **kept)
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


class Opened:
    """The networks of a component as functions, opened when they are first called."""

    def __init__(
        self, folder: Path, planned: list[Planned], precision_of: Callable[[str], str]
    ) -> None:
        self._folder, self._precision = folder, precision_of
        self._found: dict[str, Compute] = {}
        outputs = {"time_projection": "time", "context_projection": "keys_values"}
        self.projections = {p.name: outputs[p.name] for p in planned if p.name in outputs}
        self._inputs = {p.name: p.graph.inputs() for p in planned}

    def network(self, name: str) -> Compute:
        if name not in self._found:
            file = self._folder / f"{name}.onnx"
            self._found[name] = opened(file, self._precision(name))
        return self._found[name]

    def close(self, name: str) -> None:
        """Frees what a network takes."""
        self._found.pop(name, None)

    @cached_property
    def hoisted(self) -> dict[str, Compute]:
        """What gives the U-Net's hoisted inputs, by their names."""

        def given(network: str) -> Compute:
            wanted = self._inputs[network]
            return lambda arrays: self.network(network)({n: arrays[n] for n in wanted})

        return {output: given(network) for network, output in self.projections.items()}


@contextmanager
def _rounded(file: Path, precision: str) -> Iterator[Path]:
    """The graph to verify, beside the weights that it points into."""
    if precision in ("fp32", "int8"):  # whose graph rounds by itself
        yield file
        return
    model = precisions.as_rounded(onnx.load(file, load_external_data=False))
    rounded = file.with_suffix(".rounded.onnx")
    rounded.write_bytes(model.SerializeToString())
    try:
        yield rounded
    finally:
        rounded.unlink()


def difference(
    compute: Compute,
    planned: Planned,
    made: Iterable[Example],
    hoisted: Mapping[str, Compute],
) -> Difference:
    """The worst over the examples. hoisted: the projections, by what they give."""
    found = [
        compare(got[name], want.numpy())
        for example in made
        for got in [compute(feed(planned, example.inputs, hoisted))]
        for name, want in example.expected.items()
    ]
    return Difference(
        max(d.absolute for d in found),
        max(d.relative for d in found),
        sum(d.mean for d in found) / len(found),
        min(d.cosine for d in found),
    )


def feed(planned: Planned, inputs: Values, hoisted: Mapping[str, Compute]) -> Arrays:
    """The network's own inputs: those given, and those that the projections make of them."""
    arrays = {name: value.numpy() for name, value in inputs.items()}
    found = {}
    for name in planned.graph.inputs():
        found[name] = arrays[name] if name in arrays else hoisted[name](arrays)[name]
    return found


def compare(got: NDArray[Any], want: NDArray[Any]) -> Difference:
    """The distance of two arrays."""
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    gap = np.abs(a - b)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / lengths if lengths > 0 else float(np.array_equal(a, b))
    largest = max(float(np.abs(b).max()), 1e-12)
    return Difference(float(gap.max()), float(gap.max()) / largest, float(gap.mean()), cosine)


def within(found: Difference, precision: str, pixels: bool) -> bool:
    """Whether a network is near enough to its module; never where NaN came out."""
    bound = BOUNDS[precision]
    if pixels:
        return found.absolute <= bound.levels and found.mean <= bound.mean_levels
    return found.relative <= bound.relative and found.cosine >= bound.cosine


def first_layer(
    file: Path,
    precision: str,
    planned: Planned,
    module: nn.Module,
    example: Example,
    hoisted: Mapping[str, Compute],
) -> str:
    """Where a network that is out of its bound leaves it: the first module whose output does."""
    model = onnx.load(file, load_external_data=False)
    named = {path for path, _ in module.named_modules()} & {node.name for node in model.graph.node}
    # Those without such inside: a node may have the name of a larger one that it is a part of.
    paths = {path for path in named if not any(other.startswith(f"{path}.") for other in named)}
    kinds = precisions.types(model)
    # A node has its module's name; its output has another one where it is the network's output.
    values = {
        node.name: node.output[0]
        for node in model.graph.node
        if node.name in paths and kinds[node.output[0]] in precisions.FLOATS
    }
    with outputs(module, list(values)) as expected, torch.no_grad():
        planned.reference(module, example.inputs)
    for path, value in values.items():
        seen = f"{path}@seen"
        model.graph.node.append(helper.make_node("Cast", [value], [seen], to=TensorProto.FLOAT))
        model.graph.output.append(helper.make_tensor_value_info(seen, TensorProto.FLOAT, None))
    looked_at = file.with_suffix(".layers.onnx")
    looked_at.write_bytes(model.SerializeToString())
    try:
        got = opened(looked_at, precision)(feed(planned, example.inputs, hoisted))
    finally:
        looked_at.unlink()
    for path in values:
        want, seen_there = expected.get(path), got[f"{path}@seen"]
        if want is not None and tuple(want.shape) == seen_there.shape:
            found = compare(seen_there, want.numpy())
            if not within(found, precision, pixels=False):
                return f"{path}, whose relative difference is {found.relative:.2g}"
    return "what comes after its last module"


def psnr(got: NDArray[np.uint8], want: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures, in decibels."""
    square = float(np.mean((got.astype(np.float64) - want.astype(np.float64)) ** 2))
    return float("inf") if square == 0 else 10 * float(np.log10(255**2 / square))


def refuse(name: str, found: Difference, where: str) -> VerificationError:
    """What an export that is out of bounds ends with."""
    return VerificationError(
        f"{name} as exported differs from its module by {found.absolute:.3g} ({found.relative:.3g} "
        f"relative, cosine {found.cosine:.5f}), which begins at {where}: export it in a wider "
        "precision (--precision fp32), or report it if it is in that already"
    )
