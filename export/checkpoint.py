"""Reads a checkpoint in diffusers' layout.

model_index.json · scheduler/ · text_encoder/ · tokenizer/ · unet/ · vae/
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel

from ..errors import CheckpointError

PARTS = {
    "text_encoder": (CLIPTextModel, "CLIPTextModel"),
    "unet": (UNet2DConditionModel, "UNet2DConditionModel"),
    "vae": (AutoencoderKL, "AutoencoderKL"),
}


@dataclass(frozen=True)
class Checkpoint:
    """The modules of a checkpoint, in float32, whatever the precision of its files, and its
    noise schedule's and tokenizer's files."""

    path: Path
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: dict[str, Any]
    tokenizer: Path


def read(folder: Path) -> Checkpoint:
    """Loads all parts. Raises CheckpointError with what is missing or wrong."""
    if folder.suffix in {".ckpt", ".bin", ".pt", ".pth"}:
        raise CheckpointError(
            f"{folder} is a pickle, which can run code when it is read: convert it to safetensors"
            " in diffusers' layout and give that folder"
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no folder {folder}: give a checkpoint in diffusers' layout"
            " (model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/)"
        )
    index = _json(folder / "model_index.json")
    for part, (_, class_name) in PARTS.items():
        named = (index.get(part) or [None, None])[1]
        if named != class_name:
            raise CheckpointError(
                f"{part} of {folder} is a {named}; this exporter takes {class_name}"
            )
    modules = {part: _module(folder, part) for part in PARTS}
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(
            f"{tokenizer} is missing: save the tokenizer with transformers' fast tokenizer"
        )
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    return Checkpoint(
        folder,
        modules["text_encoder"],  # type: ignore[arg-type]
        modules["unet"],  # type: ignore[arg-type]
        modules["vae"],  # type: ignore[arg-type]
        scheduler,
        tokenizer,
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}): the folder must be in diffusers' layout"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is no JSON object: the checkpoint is damaged")
    return found


def _module(folder: Path, part: str) -> nn.Module:
    place = folder / part
    if not any(place.glob("*.safetensors")):
        pickled = any(place.glob("*.bin"))
        raise CheckpointError(
            f"{place} has no .safetensors file"
            + (": its .bin file is a pickle, which can run code; convert it" if pickled else "")
        )
    try:
        module = PARTS[part][0].from_pretrained(
            place, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{place} cannot be loaded ({reason})") from error
    for name, weight in module.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(
                f"{name} of {place} holds NaN or infinity: the checkpoint is damaged"
            )
    return module.eval().requires_grad_(False)  # type: ignore[no-any-return]
