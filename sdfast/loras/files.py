"""LoRA files: their layers, and which layers of a model they change.

Read are the names of kohya's tools (lora_unet_…, lora_te_…, SDXL also in Stability's block names),
of diffusers and PEFT (unet.….lora_A.weight, with the settings in the header) and of older diffusers
(….processor.to_q_lora.down.weight); see names.py. What a layer adds to a weight is low_rank.py's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import safetensors
from ..errors import LoraError
from ..floats import Array, widened
from . import low_rank, names
from .names import Place

LIMIT = 10.0
TITLES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sdxl-refiner": "the SDXL refiner"}
WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "the SDXL refiner"}
OTHER_MODELS = ("double_blocks", "single_blocks", "joint_blocks", "transformer.")
SDXL_ALONE = ("lora_te2_", "text_encoder_2.", "label_emb", "add_embedding")
SETTINGS = "lora_adapter_metadata"
CHANGED_BASE = ("pissa", "olora", "corda", "loftq")  # PEFT's beginnings that change W itself
AGAIN = "write it again with the tool that made it"


@dataclass(frozen=True)
class Model:
    """What a LoRA is fitted to.

    title: what messages call it; family: one of bundle.FAMILIES
    layers: by component those that have a matrix, by diffusers' names
    """

    title: str
    family: str
    layers: Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Layer:
    """What is added to a layer's weight.

    name: in the file; scale: alpha/rank times the weight that the file is given
    """

    name: str
    parts: low_rank.Parts
    scale: float

    def difference(self, shape: tuple[int, ...]) -> low_rank.Matrix:
        """ΔW for a weight of that shape. Raises ValueError where it does not fit."""
        found = low_rank.difference(self.parts, shape)
        found *= self.scale
        return found

    @property
    def magnitude(self) -> low_rank.Matrix | None:
        """DoRA's lengths, one for each output."""
        found = self.parts.get("magnitude")
        return None if found is None else widened(found).reshape(-1)


@dataclass(frozen=True)
class Report:
    """What became of a LoRA file's layers.

    matched: layers of the model that it changed, as unet.mid_block.attentions.0.proj_in
    unmatched: what the model has no layer for, by the file's names
    """

    file: Path
    weight: float
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.file.name} × {self.weight:g}: {len(self.matched)} layers merged"
        if not self.unmatched:
            return text
        more = f" and {len(self.unmatched) - 2} more" if len(self.unmatched) > 2 else ""
        return f"{text}, {len(self.unmatched)} unmatched ({', '.join(self.unmatched[:2])}{more})"


@dataclass(frozen=True)
class Fitted:
    """A LoRA file as it changes a model. misfit: the sentence for a layer that does not fit."""

    layers: Mapping[Place, Layer]
    report: Report
    misfit: str


def check_weight(weight: float) -> None:
    """Raises LoraError unless it is one that a LoRA may have."""
    if not (math.isfinite(weight) and abs(weight) <= LIMIT):
        raise LoraError(f"a LoRA's weight is -10 to 10; {weight:g} is not")


def fitted(file: Path, weight: float, model: Model) -> Fitted:
    """The file's layers at that weight, -10 … 10, by the model's own.

    Raises LoraError for a file that cannot be read, a LoRA of another family, and a method that is
    not implemented (it is named).
    """
    check_weight(weight)
    tensors, header = read(file)
    settings = _settings(header, file)
    layers, others = _layers({names.todays(name): one for name, one in tensors.items()}, file)
    known = names.known(model.layers)
    places = {layer: known[layer] for layer in layers if layer in known}
    family = _made_for(layers, header)
    misfit = _misfit(file, family, model)
    if not places or (family == "SDXL" and not model.family.startswith("sdxl")):
        raise LoraError(misfit)
    _check_once(places, others, file)
    found = {}
    for layer, place in places.items():
        parts = layers[layer]
        scale = weight * _scale(parts, settings.get(place[0], {}), layer, file)
        found[place] = Layer(layer, parts, scale)
    matched = tuple(sorted(f"{component}.{module}" for component, module in found))
    unmatched = tuple(sorted([*(layer for layer in layers if layer not in places), *others]))
    return Fitted(found, Report(file, weight, matched, unmatched), misfit)


def read(file: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors of a file and the texts of its header. Raises LoraError, also for pickles (.pt,
    .bin, .ckpt): reading one can run any program that it holds."""
    if not file.is_file():
        raise LoraError(f"the LoRA {file} does not exist: give a .safetensors file")
    if file.suffix.lower() != ".safetensors":
        raise LoraError(
            f"the LoRA {file} is not a .safetensors file: pickles (.pt, .bin, .ckpt) can run any"
            " program when they are read, so convert it with a tool you trust"
        )
    try:
        tensors, header = safetensors.read(file)
    except (OSError, ValueError) as error:
        raise LoraError(f"the LoRA {file} cannot be read ({error})") from error
    if not tensors:
        raise LoraError(f"the LoRA {file} is empty")
    return tensors, header


def _check_once(places: Mapping[str, Place], others: Iterable[str], file: Path) -> None:
    """Refuses layers that a file has twice or with more to them than is understood."""
    found: dict[Place, str] = {}
    for layer, place in places.items():
        if found.setdefault(place, layer) != layer:
            raise LoraError(
                f"the LoRA {file} has one layer twice, as {layer} and {found[place]}: {AGAIN}"
            )
    for key in others:
        if any(key.startswith(f"{layer}.") for layer in places):
            raise LoraError(f"the LoRA {file} has {key}, whose meaning is unknown: {AGAIN}")


def _layers(
    tensors: Mapping[str, Array], file: Path
) -> tuple[dict[str, low_rank.Parts], list[str]]:
    """Layers by their names in the file, and the names of what is no part of a layer."""
    layers: dict[str, dict[str, Array]] = {}
    others = []
    for key, tensor in tensors.items():
        for ending, method in low_rank.REFUSED.items():
            if key.endswith(f".{ending}"):
                raise LoraError(
                    f"the LoRA {file} uses {method} ({key}), which is not implemented: merge it"
                    " into the checkpoint with the tool that made it"
                )
        if key.startswith("base_model."):
            raise LoraError(
                f"the LoRA {file} is PEFT's adapter_model, whose scale is in another file: load it"
                " in diffusers and give what pipe.save_lora_weights writes"
            )
        ending = next((end for end in low_rank.PARTS if key.endswith(f".{end}")), "")
        if not ending:
            others.append(key)
        else:
            layers.setdefault(key.removesuffix(f".{ending}"), {})[low_rank.PARTS[ending]] = tensor
    for layer, parts in layers.items():
        if missing := low_rank.missing(parts):
            raise LoraError(f"the LoRA {file} lacks {missing} of {layer}: {AGAIN}")
        matrices = (one for part, one in parts.items() if part not in ("alpha", "magnitude"))
        if any(one.ndim < 2 or one.size == 0 for one in matrices):
            raise LoraError(f"the LoRA {file} has no matrices for {layer}: {AGAIN}")
    return dict(layers), others


def _settings(header: Mapping[str, str], file: Path) -> dict[str, dict[str, Any]]:
    """PEFT's settings of each component, which diffusers writes into the header."""
    try:
        written = json.loads(header.get(SETTINGS) or "{}")
        settings: dict[str, dict[str, Any]] = {}
        for key, value in written.items():
            component, _, name = key.partition(".")
            settings.setdefault(component, {})[name] = value
    except (ValueError, AttributeError, RecursionError) as error:
        raise LoraError(f"the LoRA {file} has a damaged {SETTINGS} ({error})") from error
    for values in settings.values():
        if not isinstance(values.get("alpha_pattern") or {}, dict):
            raise LoraError(f"the LoRA {file} has a damaged {SETTINGS} (alpha_pattern)")
        beginning = str(values.get("init_lora_weights", "")).lower()
        if beginning.startswith(CHANGED_BASE):
            raise LoraError(
                f"the LoRA {file} was begun with {beginning!r}, for a base model changed by it:"
                " convert it to a plain LoRA with PEFT's path_initial_model_for_weight_conversion"
            )
    return settings


def _scale(parts: low_rank.Parts, settings: Mapping[str, Any], layer: str, file: Path) -> float:
    """The layer's scale by its own alpha, else by the settings, else 1."""
    alpha = settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        name = pattern.removeprefix("^")
        if layer.endswith(f".{name}") and ("^" not in pattern or layer.partition(".")[2] == name):
            alpha = value
            break
    try:
        alpha = widened(parts["alpha"]).item() if "alpha" in parts else alpha
        alpha = None if alpha is None else float(alpha)
    except (ValueError, TypeError) as error:
        raise LoraError(f"the LoRA {file} has an alpha that is no number: {AGAIN}") from error
    return low_rank.scale(parts, alpha, bool(settings.get("use_rslora")))


def _made_for(layers: Mapping[str, low_rank.Parts], header: Mapping[str, str]) -> str | None:
    """The family that a LoRA seems to be made for, as a title, by its names, widths and header."""
    every = "\n".join(layers)
    if any(word in every for word in OTHER_MODELS):
        return "FLUX or SD 3"
    if any(word in every for word in SDXL_ALONE):
        return "SDXL"
    for layer, parts in layers.items():
        if layer.endswith(("attn2_to_k", "attn2.to_k")) and "down" in parts:
            return WIDTHS.get(parts["down"].shape[-1])
    said = header.get("modelspec.architecture", "") + header.get("ss_base_model_version", "")
    for word, title in {"xl": "SDXL", "v1": "SD 1.x", "v2": "SD 2.x"}.items():
        if word in said:
            return title
    return None


def _misfit(file: Path, family: str | None, model: Model) -> str:
    made = f"seems to be made for {family}" if family else "is made for another model"
    ours = TITLES.get(model.family, model.family)
    return f"the LoRA {file} {made}; {model.title} is {ours}: give a LoRA of its family"
