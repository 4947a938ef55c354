"""Writes a checkpoint folder as one file in the original layout, from which converters read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ...loras.names import stabilitys
from .. import sources, weight_files
from ..components import Component
from ..single_file import CONTROL, UNET, VAE

Rules = tuple[tuple[str, str], ...]
Entry = tuple[torch.Tensor, Callable[[], torch.Tensor]]  # what it is like, and the tensor itself

_VAE: Rules = (
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."),
    (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
)
_OPENCLIP: Rules = (
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
)


def single_file(folder: Path, file: Path) -> Path:
    """Writes `folder`, a model or a ControlNet in diffusers' layout, to `file` (.safetensors) with
    the same weights, and returns it. Raises CheckpointError where the folder cannot be read."""
    checkpoint = sources.read(folder)
    parts = checkpoint.components
    entries: dict[str, Entry] = {}
    if "unet" in parts:
        entries |= _denoiser(parts["unet"], UNET)
        entries |= _vae(parts["vae"])
    else:
        entries |= _denoiser(parts["controlnet"], CONTROL)
    if checkpoint.family in ("sd1", "sdxl") and "text_encoder" in parts:
        xl = checkpoint.family == "sdxl"
        place = "conditioner.embedders.0." if xl else "cond_stage_model."
        weights = parts["text_encoder"].weights
        entries |= {f"{place}transformer.text_model.{k}": _same(w) for k, w in weights.items()}
    if checkpoint.family == "sd2" and "text_encoder" in parts:
        entries |= _openclip(parts["text_encoder"], "cond_stage_model.model.")
    if "text_encoder_2" in parts:
        number = int("text_encoder" in parts)
        entries |= _openclip(parts["text_encoder_2"], f"conditioner.embedders.{number}.model.")
    layout = {name: like for name, (like, _) in entries.items()}
    weight_files.write(file, layout, lambda name: entries[name][1]())
    return file


def _same(weight: torch.Tensor) -> Entry:
    return weight, lambda: weight


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _denoiser(part: Component, prefix: str) -> dict[str, Entry]:
    each = part.config["layers_per_block"] + 1
    return {
        prefix + _denoiser_name(name, part.weights, each): _same(weight)
        for name, weight in part.weights.items()
    }


def _denoiser_name(name: str, weights: Mapping[str, torch.Tensor], each: int) -> str:
    """each: blocks a level has in the original layout, its sampler counted in."""
    if name.startswith("controlnet_"):
        return _control_name(name, weights)
    return stabilitys(name, weights, each)


def _control_name(name: str, weights: Mapping[str, torch.Tensor]) -> str:
    hint = "controlnet_cond_embedding"
    blocks = sum(other.startswith(f"{hint}.blocks.") for other in weights) // 2
    rules: Rules = (
        (rf"^{hint}\.conv_in\.", "input_hint_block.0."),
        (rf"^{hint}\.conv_out\.", f"input_hint_block.{2 * blocks + 2}."),
        (r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0."),
        (r"^controlnet_mid_block\.", "middle_block_out.0."),
    )
    if found := re.match(rf"{hint}\.blocks\.(\d+)\.(.*)", name):
        return f"input_hint_block.{2 * int(found[1]) + 2}.{found[2]}"
    return _renamed(name, rules)


def _vae(part: Component) -> dict[str, Entry]:
    levels = len(part.config["block_out_channels"])
    entries = {}
    for name, weight in part.weights.items():
        renamed = _renamed(name, _VAE)
        if found := re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(.*)", renamed):
            place = f"decoder.up.{levels - 1 - int(found[1])}"
            renamed = (
                f"{place}.block.{found[3]}"
                if found[2] == "resnets"
                else f"{place}.upsample.{found[3].removeprefix('0.')}"
            )
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", renamed):
            weight = weight[:, :, None, None]  # 1×1 convolutions there
        entries[VAE + renamed] = _same(weight)
    return entries


def _openclip(part: Component, prefix: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    weights = {name.removeprefix("text_model."): w for name, w in part.weights.items()}
    for name, weight in weights.items():
        if name == "text_projection.weight":
            entries[f"{prefix}text_projection"] = (weight.T, lambda w=weight: w.T)  # type: ignore[misc]
        elif found := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            like = torch.empty(3 * weight.shape[0], *weight.shape[1:], device="meta").to(
                weight.dtype
            )
            three = [weights[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            place = f"{prefix}transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"
            entries[place] = (like, lambda parts=three: torch.cat(parts))  # type: ignore[misc]
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            entries[prefix + _renamed(name, _OPENCLIP)] = _same(weight)
    return entries
