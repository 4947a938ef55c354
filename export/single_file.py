"""Checkpoints of one file in the original layout: SD 1.x, 2.x, SDXL, its refiner, ControlNets.

    model.diffusion_model.*            the U-Net
    first_stage_model.*                the VAE
    cond_stage_model.transformer.*     SD 1's text encoder (CLIP)
    cond_stage_model.model.*           SD 2's (OpenCLIP)
    conditioner.embedders.0.*, .1.*    SDXL's two; the refiner's, an OpenCLIP at 0
    control_model.*                    a ControlNet

diffusers' converters rename the weights; configurations are read off the weights' shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import single_file_utils as original

from ..errors import CheckpointError
from . import families, schedulers, shapes
from .components import Component, component
from .weight_files import Weights

UNET, VAE, CONTROL = "model.diffusion_model.", "first_stage_model.", "control_model."
TEXT_ENCODERS = {  # where it is → its name, and whether OpenCLIP trained it
    "cond_stage_model.transformer.": ("text_encoder", False),
    "cond_stage_model.model.": ("text_encoder", True),
    "conditioner.embedders.0.transformer.": ("text_encoder", False),
    "conditioner.embedders.0.model.": ("text_encoder_2", True),
    "conditioner.embedders.1.model.": ("text_encoder_2", True),
}
_UNUSED = ("loss.", "model_ema.")  # what training leaves behind
_LORA = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1_a", ".lokr_w1")
OPENCLIP_H_LAYERS = 24


def read(
    weights: Weights, file: Path, prediction: str | None
) -> tuple[dict[str, Component], dict[str, Any]]:
    """The components by diffusers' names (no VAE where the file has none) and the schedule.

    prediction: what the U-Net predicts, where the user knows. Raises CheckpointError.
    """
    if _is_controlnet(weights):  # first: some files hold the model beside its ControlNet
        return {"controlnet": controlnet(weights, file)}, {}
    if any(name.startswith(UNET) for name in weights):
        found = _pipeline(weights, file)
        schedule = _scheduler(families.family(found), found["unet"], weights)
        schedule |= {} if prediction is None else {"prediction_type": prediction}
        return _sized(found, schedule), schedule
    raise CheckpointError(f"{file} is no checkpoint that is taken: {_instead(weights)}")


def _instead(weights: Weights) -> str:
    names = list(weights)
    if any(mark in name for name in names for mark in _LORA):
        return "it is a LoRA, which is merged into a checkpoint: --lora FILE"
    if any(name.endswith(("decoder.conv_in.weight", "decoder.layers.1.weight")) for name in names):
        return "it is a VAE, which replaces a checkpoint's: --vae FILE"
    if "conv_in.weight" in names and any(name.startswith("up_blocks.") for name in names):
        return "it is a U-Net alone in diffusers' layout; give the folder of the whole model"
    shown = ", ".join(names[:3]) or "nothing"
    return f"it holds {shown} …, where Stable Diffusion's original layout has {UNET}…"


def _pipeline(weights: Weights, file: Path) -> dict[str, Component]:
    refused = [name for name in ("edm_mean", "edm_vpred.sigma_max") if name in weights]
    if refused:
        raise CheckpointError(
            f"{file} was trained in the EDM formulation ({refused[0]}), which is not taken"
        )
    found: dict[str, Component] = {}
    for prefix, (part, openclip) in TEXT_ENCODERS.items():
        inside = _under(weights, prefix)
        if inside:
            found[part] = _text_encoder(inside, prefix, openclip, file)
    if not found:
        raise CheckpointError(
            f"text_encoder is missing from {file}: it holds a part of a checkpoint only;"
            " give the whole one, or its folder in diffusers' layout"
        )
    second = found.get("text_encoder_2")
    pooled = None if second is None else second.config["projection_dim"]
    alone = "text_encoder" not in found  # the refiner
    ids = families.XL_IDS["sdxl-refiner" if alone else "sdxl"]
    found["unet"] = _unet(_under(weights, UNET), pooled, ids, file)
    inside = _under(weights, VAE)
    if inside:
        found["vae"] = vae(inside, families.LATENT_SCALES[families.family(found)], file)
    return found


def _under(weights: Weights, prefix: str) -> Weights:
    return {name: weight for name, weight in weights.items() if name.startswith(prefix)}


def _unet(weights: Weights, pooled: int | None, ids: int, file: Path) -> Component:
    inner = {name.removeprefix(UNET): weight for name, weight in weights.items()}
    facts = {
        "layers_per_block": _layers_per_block(inner, file),
        "class_embed_type": None,
        "addition_embed_type": None if pooled is None else "text_time",
    }
    converted = _converted(weights, lambda w: original.convert_ldm_unet_checkpoint(w, facts), file)
    # LCM's, which diffusers' script to the original layout leaves as it is, and its converter out.
    guidance = "time_embedding.cond_proj.weight"
    if guidance in inner:
        converted[guidance] = inner[guidance]
    _require_all_used(weights, converted, file)
    return component("UNet2DConditionModel", shapes.unet(converted, pooled, ids), converted, file)


def _layers_per_block(inner: Mapping[str, torch.Tensor], file: Path) -> int:
    blocks = {name.split(".")[1] for name in inner if name.startswith("input_blocks.")}
    levels = 1 + sum(name.endswith(".0.op.weight") for name in inner)
    layers, rest = divmod(len(blocks), levels)
    if rest or layers < 2:
        raise CheckpointError(
            f"the U-Net of {file} has {len(blocks)} input blocks on {levels} levels: it is"
            " incomplete"
        )
    return layers - 1


def vae(weights: Weights, latent_scale: float, file: Path) -> Component:
    """An AutoencoderKL or AutoencoderTiny; names with or without "first_stage_model.", in the
    original layout or diffusers'. Raises CheckpointError."""
    weights = {k: v for k, v in weights.items() if not k.startswith(_UNUSED)}
    if any(name.startswith("decoder.layers.") for name in weights):
        return component("AutoencoderTiny", {}, weights, file)
    if not any(name.endswith("decoder.conv_in.weight") for name in weights):
        raise CheckpointError(f"{file} holds no VAE: decoder.conv_in.weight is missing from it")
    if not any("decoder.up_blocks." in name for name in weights):
        levels = len(
            {
                name.split("encoder.down.")[1].split(".")[0]
                for name in weights
                if "encoder.down." in name
            }
        )
        facts = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}  # counts
        converted = _converted(
            weights, lambda w: original.convert_ldm_vae_checkpoint(w, facts), file
        )
        _require_all_used(weights, converted, file)
        weights = converted
    return component("AutoencoderKL", shapes.vae(weights, latent_scale), weights, file)


def _text_encoder(weights: Weights, prefix: str, openclip: bool, file: Path) -> Component:
    if not openclip:
        inner = original.convert_ldm_clip_checkpoint(weights)
        named = {
            name
            if name.startswith(("text_model.", "text_projection."))
            else f"text_model.{name}": weight
            for name, weight in inner.items()
        }
        named.pop("text_projection.weight", None)
        return component("CLIPTextModel", shapes.text_encoder(named, "quick_gelu"), named, file)
    second = prefix.startswith("conditioner.")
    if not second:
        weights = _without_last_layer(weights, prefix)
    width = shapes.width(weights, f"{prefix}token_embedding.weight", 1)
    shell = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    named = _converted(
        weights, lambda w: original.convert_open_clip_checkpoint(shell, w, prefix), file
    )
    kind = "CLIPTextModelWithProjection" if second else "CLIPTextModel"
    return component(kind, shapes.text_encoder(named, "gelu"), named, file)


def _without_last_layer(weights: Weights, prefix: str) -> Weights:
    """SD 2 reads the last but one layer of OpenCLIP's encoder; its files hold the last one and the
    projection all the same, unless they were made from diffusers' layout."""
    blocks = f"{prefix}transformer.resblocks."
    numbers = {int(name[len(blocks) :].split(".")[0]) for name in weights if blocks in name}
    projection = f"{prefix}text_projection"
    if len(numbers) != OPENCLIP_H_LAYERS and projection not in weights:
        return weights
    last = f"{blocks}{max(numbers, default=0)}."
    return {k: v for k, v in weights.items() if not k.startswith((last, projection))}


def _is_controlnet(weights: Weights) -> bool:
    return any(
        name.startswith((CONTROL, "input_hint_block.", "controlnet_cond_embedding."))
        for name in weights
    )


def controlnet(weights: Weights, file: Path) -> Component:
    """A ControlNetModel, in the original layout or diffusers'. Raises CheckpointError."""
    if "controlnet_cond_embedding.conv_in.weight" not in weights:
        inner = {
            k.removeprefix(CONTROL): v
            for k, v in weights.items()
            if k.startswith(CONTROL) or not _under(weights, CONTROL)
        }
        facts = {"layers_per_block": _layers_per_block(inner, file)}
        converted = _converted(
            inner, lambda w: original.convert_controlnet_checkpoint(w, facts), file
        )
        if "label_emb.0.0.weight" in inner:  # SDXL's, which diffusers' converter leaves out
            names = original.DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"]
            converted |= {new: inner[old] for new, old in names.items() if old in inner}
        _require_all_used(inner, converted, file)
        weights = converted
    return component("ControlNetModel", shapes.controlnet(weights), weights, file)


def _converted(
    weights: Mapping[str, torch.Tensor], convert: Callable[[Any], Weights], file: Path
) -> Weights:
    try:
        converted = convert(dict(weights))
    except (KeyError, IndexError, AttributeError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be converted ({type(error).__name__}: {error}): weights of the original"
            " layout are missing from it"
        ) from error
    return {name: weight for name, weight in converted.items() if weight is not None}


def _require_all_used(weights: Weights, converted: Weights, file: Path) -> None:
    """A weight that no converter knows means another network, not one that happens to fit."""
    used = {weight.data_ptr() for weight in converted.values()}
    for name, weight in weights.items():
        if weight.data_ptr() not in used:
            raise CheckpointError(f"{file} holds {name}, which Stable Diffusion's layout has not")


def _scheduler(family: str, unet: Component, weights: Weights) -> dict[str, Any]:
    """The scheduler_config.json that the file's model was published with, as diffusers assumes it:
    a file of SD 2 predicts v unless it is an inpainting model or SD 2.0 base, whose last training
    step was 875000. SDXL's fine-tunes mark v by a tensor v_pred, zero terminal SNR by ztsnr."""
    if unet.config["time_cond_proj_dim"] is not None:
        return dict(schedulers.LCM)
    if family == "sd1":
        return dict(schedulers.SD1)
    if family == "sd2":
        base = "global_step" in weights and int(weights["global_step"]) == 875_000
        epsilon = base or unet.config["in_channels"] != unet.config["out_channels"]
        return schedulers.SD2 | ({"prediction_type": "epsilon"} if epsilon else {})
    return (
        schedulers.SDXL
        | ({"prediction_type": "v_prediction"} if "v_pred" in weights else {})
        | ({"rescale_betas_zero_snr": True} if "ztsnr" in weights else {})
    )


def _sized(found: dict[str, Component], schedule: Mapping[str, Any]) -> dict[str, Component]:
    """With the sizes of pictures the families were trained on, in latents: no weight tells them.
    Of SD 2's models, those that predict v are the large ones; their attention needs float32."""
    family = families.family(found)
    large = family == "sd2" and schedule["prediction_type"] == "v_prediction"
    side = {"sd1": 64, "sd2": 96 if large else 64}.get(family, 128)
    if found["unet"].config["time_cond_proj_dim"] is not None and family == "sd1":
        side = 96
    sized = dict(found)
    told = {"sample_size": side} | ({"upcast_attention": True} if large else {})
    sized["unet"] = replace(found["unet"], config=dict(found["unet"].config) | told)
    if "vae" in found:
        sized["vae"] = replace(
            found["vae"], config=dict(found["vae"].config) | {"sample_size": 8 * side}
        )
    return sized
