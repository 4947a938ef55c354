"""What real runs tell of a component's networks before they are narrowed: which tensors float16
cannot hold, and what range each tensor has that int8 rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from . import modelopt, precision, quantization, symmetric, verify, weights
from .components import Component
from .drawing import Drawing
from .networks import Options
from .plan import Planned


@dataclass(frozen=True)
class Runs:
    """What networks read on the way to pictures that torch draws.

    picture: that which the bundle has to draw as well; None for a checkpoint that draws nothing
        from text alone, whose networks read random values
    others: more of them, where a network is int8
    unit: what the sides of a latent are multiples of
    """

    picture: Drawing | None
    others: tuple[Drawing, ...]
    unit: int
    options: Options

    def few(self, p: Planned) -> list[verify.Values]:
        """At the beginning, in the middle and at the end of the first picture."""
        if self.picture is not None:
            seen = self.picture.seen[p.name]
            return [_whole(p, seen[k]) for k in sorted({0, len(seen) // 2, len(seen) - 1})]
        side = 4 * self.unit
        shapes = p.shapes(1, self.options.height or side, self.options.width or side)
        return [verify.random_inputs(p, shapes, 0)]

    def every(self, p: Planned) -> list[verify.Values]:
        """At every step of every picture."""
        drawn = (self.picture, *self.others) if self.picture is not None else ()
        return [_whole(p, values) for one in drawn for values in one.seen[p.name]]


@dataclass
class Findings:
    """By network: the largest magnitudes of its tensors, where it is fp16; the ranges of those that
    are rounded, where it is int8; the steps of what its layers read, where it is int8-fp16 or fp8;
    and what stays float32: tensors of fp16, products of int8."""

    magnitudes: dict[str, Mapping[str, float]] = field(default_factory=dict)
    spans: dict[str, quantization.Spans] = field(default_factory=dict)
    scales: dict[str, symmetric.Scales] = field(default_factory=dict)
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """magnitudes.json, ranges.json and steps.json, as far as there is something to tell."""
        if self.magnitudes:
            precision.write_report(folder / "magnitudes.json", self.magnitudes)
        if self.spans:
            quantization.write_report(folder / "ranges.json", self.spans)
        if self.scales:
            symmetric.write_report(folder / "steps.json", self.scales)


def look(
    component: Component,
    planned: list[Planned],
    precision_of: Callable[[str], str],
    runs: Runs,
    folder: Path,
    found: Findings,
    tell: Callable[[str], None],
) -> None:
    """Adds to `found` what the exact graphs do on these runs. planned: all of the component's
    networks; folder: for files that are gone afterwards; tell: of what is looked for."""
    narrowed = [p for p in planned if precision_of(p.name) in ("fp16", "int8", *symmetric.KINDS)]
    if not narrowed:
        return
    rounded = [p for p in narrowed if precision_of(p.name) in symmetric.KINDS]
    if rounded:
        tell(f"looking for the ranges of {rounded[0].name}")
        # Which runs the whole module, whose parts the others are.
        run = partial(_each, rounded[0].reference, runs.every(rounded[0]))
        largest = modelopt.largest(component.module(), run)
        for p in rounded:
            model, kind = p.graph.model(), precision_of(p.name)
            found.scales[p.name] = symmetric.scales(model, p.graph.weights, kind, largest)
    with tempfile.TemporaryDirectory(dir=folder, prefix="calibration-") as place:
        exact = Path(place)
        graphs = [(p.graph.model(), p.graph.weights) for p in planned]
        weights.as_checkpoint(graphs, component.weights, exact / "weights.safetensors")
        for p, (model, _) in zip(planned, graphs, strict=True):
            (exact / f"{p.name}.onnx").write_bytes(model.SerializeToString())
        opened = verify.Opened(exact, planned, lambda name: "fp32")
        for p in narrowed:
            file = exact / f"{p.name}.onnx"
            if precision_of(p.name) != "int8":
                tell(f"looking for what float16 cannot hold in {p.name}")
                feeds = (verify.feed(p, values, opened.hoisted) for values in runs.few(p))
                found.magnitudes[p.name] = precision.magnitudes(file, feeds)
                found.kept[p.name] = precision.too_large(found.magnitudes[p.name])
            else:
                tell(f"looking for the ranges of {p.name}")
                feeds = (verify.feed(p, values, opened.hoisted) for values in runs.every(p))
                model = p.graph.model()
                names = quantization.rounded(model, p.graph.weights)
                found.spans[p.name] = quantization.spans(file, names, feeds)
                found.kept[p.name] = quantization.left_out(model, p.graph.weights)


def _each(
    reference: Callable[[nn.Module, verify.Values], object],
    every: list[verify.Values],
    module: nn.Module,
) -> None:
    with torch.no_grad():
        for values in every:
            reference(module, values)


def _whole(p: Planned, values: verify.Values) -> verify.Values:
    """What a run brought, and random values for what it had no need of."""
    rows, _, height, width = values["latent"].shape if "latent" in values else (1, 0, 8, 8)
    return {**verify.random_inputs(p, p.shapes(rows, height, width), 0), **values}
