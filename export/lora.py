"""Merges LoRA files into a checkpoint's weights: W ← W + weight · ΔW, with ΔW by low_rank.

Read are the names of kohya's tools (lora_unet_…, lora_te_…, SDXL also in Stability's block names),
of diffusers and PEFT (unet.….lora_A.weight, with the settings in the header) and of older diffusers
(….processor.to_q_lora.down.weight). kohya's names are a model's own with _ for each dot, so they
are looked up among the checkpoint's; all other renaming is diffusers' own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import lora_conversion_utils
from diffusers.utils import state_dict_utils

from ..errors import CheckpointError
from . import addons, low_rank
from .components import Checkpoint, Component

LIMIT = 10.0
PREFIXES = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
TITLES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sdxl-refiner": "the SDXL refiner"}
WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "the SDXL refiner"}
OTHER_MODELS = ("double_blocks", "single_blocks", "joint_blocks", "transformer.")
SDXL_ALONE = ("lora_te2_", "text_encoder_2.", "label_emb", "add_embedding")
SETTINGS = "lora_adapter_metadata"
CHANGED_BASE = ("pissa", "olora", "corda", "loftq")  # PEFT's beginnings that change W itself

AGAIN = "write it again with the tool that made it"

Place = tuple[str, str]
"""A component and a layer of it, by the checkpoint's names."""


@dataclass(frozen=True)
class Report:
    """What became of a LoRA file's layers.

    matched: layers of the checkpoint that it changed, as unet.mid_block.attentions.0.proj_in
    unmatched: what the checkpoint has no layer for, by the file's names
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


def parse(text: str) -> tuple[Path, float]:
    """A file and its weight from "file.safetensors:0.8"; 1 without a weight.

    A path may hold colons. Raises CheckpointError for a weight that is no number in -10 … 10.
    """
    head, colon, tail = text.rpartition(":")
    try:
        weight = float(tail) if colon else 1.0
    except ValueError:
        if head.endswith(".safetensors"):
            raise CheckpointError(
                f"the weight {tail!r} of the LoRA {head} is not a number: give one as in {head}:0.8"
            ) from None
        return Path(text), 1.0
    _check_weight(weight)
    return Path(head if colon else text), weight


def merge(checkpoint: Checkpoint, file: Path, weight: float = 1.0) -> tuple[Checkpoint, Report]:
    """The checkpoint with a LoRA merged in, and what of the file found its place.

    Each changed weight is computed in float32 and rounded once, to its own precision; all others
    stay the tensors they are. Several files are merged one after the other.

    weight: -10 … 10

    Raises CheckpointError for a file that cannot be read, a LoRA of another family, a method that
    is not implemented (it is named), and weights that come out infinite.
    """
    _check_weight(weight)
    tensors, header = addons.read(file, "LoRA")
    settings = _settings(header, file)
    layers, others = _layers(_as_peft(tensors), file)
    places = _places(layers, checkpoint)
    family = _made_for(layers, header)
    misfit = _misfit(file, family, checkpoint)
    if not places or (family == "SDXL" and not checkpoint.family.startswith("sdxl")):
        raise CheckpointError(misfit)
    _check_once(places, others, file)
    components = dict(checkpoint.components)
    for name, component in checkpoint.components.items():
        changed: dict[str, torch.Tensor] = {}
        for layer in (one for one, place in places.items() if place[0] == name):
            parts, key = layers[layer], f"{places[layer][1]}.weight"
            scale = weight * _scale(parts, settings.get(name, {}), layer, file)
            try:
                changed[key] = _merged(component.weights[key], parts, scale)
            except RuntimeError as error:
                raise CheckpointError(f"{misfit} ({layer}: {error})") from error
            except OverflowError as error:
                raise CheckpointError(
                    f"the LoRA {file} at weight {weight:g} makes {name}.{key} {error}: give a"
                    " smaller weight, if the file is whole"
                ) from error
        if changed:
            components[name] = replace(component, weights={**component.weights, **changed})
    matched = tuple(sorted(f"{name}.{module}" for name, module in places.values()))
    unmatched = tuple(sorted([*(layer for layer in layers if layer not in places), *others]))
    return replace(checkpoint, components=components), Report(file, weight, matched, unmatched)


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and abs(weight) <= LIMIT):
        raise CheckpointError(f"a LoRA's weight is -10 to 10; {weight:g} is not")


def _check_once(places: Mapping[str, Place], others: Iterable[str], file: Path) -> None:
    """Refuses layers that a file has twice or with more to them than is understood."""
    found: dict[Place, str] = {}
    for layer, place in places.items():
        if found.setdefault(place, layer) != layer:
            raise CheckpointError(
                f"the LoRA {file} has one layer twice, as {layer} and {found[place]}: {AGAIN}"
            )
    for key in others:
        if any(key.startswith(f"{layer}.") for layer in places):
            raise CheckpointError(f"the LoRA {file} has {key}, whose meaning is unknown: {AGAIN}")


def _as_peft(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, those in diffusers' forms renamed as PEFT does, by diffusers' conversion."""
    renamed = {key: tensor for key, tensor in tensors.items() if key.startswith("lora_")}
    dotted = {key: tensor for key, tensor in tensors.items() if not key.startswith("lora_")}
    text = {key: tensor for key, tensor in dotted.items() if key.startswith("text_encoder")}
    denoiser = {key: tensor for key, tensor in dotted.items() if key not in text}
    renamed |= state_dict_utils.convert_unet_state_dict_to_peft(denoiser)
    try:
        older = state_dict_utils.convert_state_dict_to_diffusers(text)
        renamed |= state_dict_utils.convert_state_dict_to_peft(older)
    except ValueError:  # there is nothing that it knows another name of
        renamed |= text
    return renamed


def _layers(
    tensors: Mapping[str, torch.Tensor], file: Path
) -> tuple[dict[str, low_rank.Parts], list[str]]:
    """Layers by their names in the file, and the names of what is no part of a layer."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    others = []
    for key, tensor in tensors.items():
        for ending, method in low_rank.REFUSED.items():
            if key.endswith(f".{ending}"):
                raise CheckpointError(
                    f"the LoRA {file} uses {method} ({key}), which is not implemented: merge it"
                    " into the checkpoint with the tool that made it"
                )
        if key.startswith("base_model."):
            raise CheckpointError(
                f"the LoRA {file} is PEFT's adapter_model, whose scale is in another file: load it"
                " in diffusers and give what pipe.save_lora_weights writes"
            )
        ending = next((end for end in low_rank.PARTS if key.endswith(f".{end}")), None)
        if ending is None:
            others.append(key)
        else:
            layers.setdefault(key.removesuffix(f".{ending}"), {})[low_rank.PARTS[ending]] = tensor
    for layer, parts in layers.items():
        if missing := low_rank.missing(parts):
            raise CheckpointError(f"the LoRA {file} lacks {missing} of {layer}: {AGAIN}")
        matrices = (one for part, one in parts.items() if part not in ("alpha", "magnitude"))
        if any(one.ndim < 2 or one.numel() == 0 for one in matrices):
            raise CheckpointError(f"the LoRA {file} has no matrices for {layer}: {AGAIN}")
    return layers, others


def _places(layers: Iterable[str], checkpoint: Checkpoint) -> dict[str, Place]:
    """Where each layer of the file that the checkpoint has is in it."""
    known, kohya = _known(checkpoint)
    per_block = checkpoint.components["unet"].config.get("layers_per_block")
    places = {}
    for layer in layers:
        if layer.startswith(PREFIXES["unet"]) and layer not in kohya and isinstance(per_block, int):
            place = known.get(f"unet.{_from_stability(layer, per_block)}")
        else:
            # Older diffusers' files hold a U-Net alone, whose name is left out.
            place = kohya.get(layer) or known.get(layer) or known.get(f"unet.{layer}")
        if place is not None:
            places[layer] = place
    return places


def _known(checkpoint: Checkpoint) -> tuple[dict[str, Place], dict[str, Place]]:
    """Names of the checkpoint's layers → place: with dots, and as kohya's tools write them."""
    dotted, kohya = {}, {}
    for component, prefixes in PREFIXES.items():
        for module in _modules(checkpoint.components.get(component)):
            # transformers' text encoders have had text_model. before their layers or not.
            bare = module.removeprefix("text_model.")
            for name in (module,) if component == "unet" else (bare, f"text_model.{bare}"):
                dotted[f"{component}.{name}"] = component, module
                for prefix in prefixes:
                    kohya[prefix + name.replace(".", "_")] = component, module
    return dotted, kohya


def _modules(component: Component | None) -> list[str]:
    if component is None:
        return []
    matrices = (name for name, weight in component.weights.items() if weight.ndim > 1)
    return [name.removesuffix(".weight") for name in matrices if name.endswith(".weight")]


def _from_stability(layer: str, per_block: int) -> str:
    """lora_unet_input_blocks_4_1_… → down_blocks.1.attentions.0.…"""
    key, unet = f"{layer}.lora_down.weight", SimpleNamespace(layers_per_block=per_block)
    try:
        # One at a time: among many, diffusers takes block 1 for the beginning of 10 and 11.
        (blocks,) = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers({key: None}, unet)
    except (ValueError, IndexError):  # it reads numbers where there are none
        return layer
    converted = lora_conversion_utils._convert_unet_lora_key(blocks)
    (name,) = state_dict_utils.convert_unet_state_dict_to_peft({converted: None})
    return str(name).removesuffix(".lora_A.weight")


def _settings(header: Mapping[str, str], file: Path) -> dict[str, dict[str, Any]]:
    """PEFT's settings of each component, which diffusers writes into the header."""
    try:
        written = json.loads(header.get(SETTINGS) or "{}")
        settings: dict[str, dict[str, Any]] = {}
        for key, value in written.items():
            component, _, name = key.partition(".")
            settings.setdefault(component, {})[name] = value
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"the LoRA {file} has a damaged {SETTINGS} ({error})") from error
    for values in settings.values():
        if not isinstance(values.get("alpha_pattern") or {}, dict):
            raise CheckpointError(f"the LoRA {file} has a damaged {SETTINGS} (alpha_pattern)")
        beginning = str(values.get("init_lora_weights", "")).lower()
        if beginning.startswith(CHANGED_BASE):
            raise CheckpointError(
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
        alpha = parts["alpha"].item() if "alpha" in parts else alpha
        alpha = None if alpha is None else float(alpha)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the LoRA {file} has an alpha that is no number: {AGAIN}") from error
    return low_rank.scale(parts, alpha, bool(settings.get("use_rslora")))


def _merged(weight: torch.Tensor, parts: low_rank.Parts, scale: float) -> torch.Tensor:
    """W + scale · ΔW, in W's precision.

    Raises RuntimeError when the shapes differ, OverflowError for what that precision cannot hold.
    """
    difference = low_rank.difference(parts)
    one_by_one = all(side == 1 for side in (*difference.shape[2:], *weight.shape[2:]))
    same = difference.shape == weight.shape or (
        difference.flatten(1).shape == weight.flatten(1).shape
        and (difference.ndim == 2 or one_by_one)
    )
    if not same:
        theirs, ours = ("×".join(map(str, one.shape)) for one in (difference, weight))
        raise RuntimeError(f"{theirs} there, {ours} here")
    merged = difference.reshape(weight.shape).mul_(scale).add_(weight.float())
    if "magnitude" in parts:
        merged = low_rank.decomposed(merged, parts["magnitude"])
    low, high = merged.aminmax()
    if not -torch.finfo(weight.dtype).max <= low <= high <= torch.finfo(weight.dtype).max:
        raise OverflowError(f"infinite or NaN in {weight.dtype}")
    return merged.to(weight.dtype)


def _made_for(layers: Mapping[str, low_rank.Parts], header: Mapping[str, str]) -> str | None:
    """The family that a LoRA seems to be made for, as a title, by its names, widths and header."""
    names = "\n".join(layers)
    if any(word in names for word in OTHER_MODELS):
        return "FLUX or SD 3"
    if any(
        word in names for word in ("lora_te2_", "text_encoder_2.", "label_emb", "add_embedding")
    ):
        return "SDXL"
    for layer, parts in layers.items():
        if layer.endswith(("attn2_to_k", "attn2.to_k")) and "down" in parts:
            return WIDTHS.get(parts["down"].shape[-1])
    said = header.get("modelspec.architecture", "") + header.get("ss_base_model_version", "")
    for word, title in {"xl": "SDXL", "v1": "SD 1.x", "v2": "SD 2.x"}.items():
        if word in said:
            return title
    return None


def _misfit(file: Path, family: str | None, checkpoint: Checkpoint) -> str:
    made = f"seems to be made for {family}" if family else "is made for another model"
    ours = TITLES.get(checkpoint.family, checkpoint.family)
    return f"the LoRA {file} {made}; {checkpoint.source} is {ours}: give a LoRA of its family"
