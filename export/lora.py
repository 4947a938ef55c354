"""Merges LoRA files into a checkpoint's weights: W ← W + weight · ΔW (sdfast/loras has the files
and the arithmetic, which the runtime applies to bundles without an export)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..errors import LoraError
from ..loras import low_rank
from ..loras.files import Layer, Model, Report, fitted
from ..loras.names import PREFIXES
from .components import Checkpoint, Component


def merge(checkpoint: Checkpoint, file: Path, weight: float = 1.0) -> tuple[Checkpoint, Report]:
    """The checkpoint with a LoRA merged in, and what of the file found its place.

    Each changed weight is computed in float32 and rounded once, to its own precision; all others
    stay the tensors they are. Several files are merged one after the other.

    weight: -10 … 10

    Raises LoraError as `loras.files.fitted` does, for layers of other shapes, and for weights that
    come out infinite.
    """
    components = dict(checkpoint.components)
    layers = {n: _matrices(components[n]) for n in PREFIXES if n in components}
    found = fitted(file, weight, Model(checkpoint.source, checkpoint.family, layers))
    changed: dict[str, dict[str, torch.Tensor]] = {}
    for (name, module), layer in found.layers.items():
        key = f"{module}.weight"
        try:
            merged = _merged(components[name].weights[key], layer)
        except ValueError as error:
            raise LoraError(f"{found.misfit} ({layer.name}: {error})") from error
        except OverflowError as error:
            raise LoraError(
                f"the LoRA {file} at weight {weight:g} makes {name}.{key} {error}: give a smaller"
                " weight, if the file is whole"
            ) from error
        changed.setdefault(name, {})[key] = merged
    for name, weights in changed.items():
        component = components[name]
        components[name] = replace(component, weights={**component.weights, **weights})
    return replace(checkpoint, components=components), found.report


def _matrices(component: Component) -> list[str]:
    found = (name for name, weight in component.weights.items() if weight.ndim > 1)
    return [name.removesuffix(".weight") for name in found if name.endswith(".weight")]


def _merged(weight: torch.Tensor, layer: Layer) -> torch.Tensor:
    """W', in W's precision.

    Raises ValueError when the shapes differ, OverflowError for what that precision cannot hold.
    """
    difference = layer.difference(tuple(weight.shape))
    exact = low_rank.merged(weight.float().numpy(), difference, layer.magnitude)
    merged = torch.from_numpy(exact).to(weight.dtype)
    if not merged.isfinite().all():
        raise OverflowError(f"infinite or NaN in {weight.dtype}")
    return merged
