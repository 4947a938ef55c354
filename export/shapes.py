"""Configurations read off the shapes of weights, for files that carry none.

Names are diffusers' and transformers'. What shapes do not tell is what all published models share:
32 groups in group norms; 8 attention heads in SD 1.x, 64 channels a head in everything later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import CheckpointError

Config = dict[str, Any]
Weights = Mapping[str, torch.Tensor]


def _count(weights: Weights, prefix: str) -> int:
    """How many different numbers follow `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({found[1] for name in weights if (found := pattern.match(name))})


def width(weights: Weights, name: str, axis: int) -> int:
    """The size of a weight's axis. Raises CheckpointError where it is missing."""
    try:
        return int(weights[name].shape[axis])
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{name} is missing or misshapen: the network's sizes cannot be told"
        ) from error


def _has(weights: Weights, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights)


def _heads(channels: int) -> int:
    return max(1, channels // 64)


def unet(weights: Weights, pooled: int | None = None, ids: int = 6) -> Config:
    """UNet2DConditionModel's. pooled: numbers of the pooled text it adds; ids: of size ids."""
    levels = _count(weights, "up_blocks.")
    up = [_has(weights, f"up_blocks.{k}.attentions.") for k in range(levels)]
    return _denoiser(weights, pooled, ids) | {
        "out_channels": width(weights, "conv_out.weight", 0),
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in up],
        "time_cond_proj_dim": (
            width(weights, "time_embedding.cond_proj.weight", 1)
            if "time_embedding.cond_proj.weight" in weights
            else None
        ),
    }


def controlnet(weights: Weights) -> Config:
    """ControlNetModel's. One for SDXL adds pooled text of 1280 numbers."""
    hint = "controlnet_cond_embedding"
    blocks = _count(weights, f"{hint}.blocks.")
    outer = [width(weights, f"{hint}.conv_in.weight", 0)]
    outer += [width(weights, f"{hint}.blocks.{k}.weight", 0) for k in range(1, blocks, 2)]
    return _denoiser(weights, 1280, 6) | {
        "conditioning_channels": width(weights, f"{hint}.conv_in.weight", 1),
        "conditioning_embedding_out_channels": outer,
    }


def _denoiser(weights: Weights, pooled: int | None, ids: int) -> Config:
    levels = _count(weights, "down_blocks.")
    blocks = [f"down_blocks.{k}." for k in range(levels)]
    channels = [width(weights, f"{block}resnets.0.conv2.weight", 0) for block in blocks]
    attends = [_has(weights, f"{block}attentions.") for block in blocks]
    depths = [_count(weights, f"{block}attentions.0.transformer_blocks.") or 1 for block in blocks]
    middle = _count(weights, "mid_block.attentions.0.transformer_blocks.")
    if middle and not attends[-1]:
        depths[-1] = middle  # the middle block is as deep as the last level is said to be
    told = {depth for depth, has in zip(depths, attends, strict=True) if has} | {depths[-1]}
    linear = _axes_of_projection(weights) == 2
    added = "add_embedding.linear_1.weight"
    extra = width(weights, added, 1) if added in weights else None
    return {
        "in_channels": width(weights, "conv_in.weight", 1),
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "layers_per_block": _count(weights, "down_blocks.0.resnets."),
        "transformer_layers_per_block": told.pop() if len(told) == 1 else depths,
        "cross_attention_dim": width(weights, _first(weights, "attn2.to_k.weight"), 1),
        "attention_head_dim": [_heads(c) for c in channels] if linear else 8,
        "use_linear_projection": linear,
        "addition_embed_type": None if extra is None else "text_time",
        "addition_time_embed_dim": None if extra is None else _each_id(extra, pooled, ids),
        "projection_class_embeddings_input_dim": extra,
    }


def _each_id(extra: int, pooled: int | None, ids: int) -> int:
    """How many of the extra numbers each id is embedded in."""
    each, rest = divmod(extra - (pooled or 0), ids)
    if each < 1 or rest:
        raise CheckpointError(
            f"add_embedding.linear_1.weight takes {extra} numbers, which are not {pooled} of pooled"
            f" text and {ids} ids: the network's sizes cannot be told"
        )
    return each


def _first(weights: Weights, ending: str) -> str:
    return next((name for name in weights if name.endswith(ending)), ending)


def _axes_of_projection(weights: Weights) -> int:
    name = _first(weights, "attentions.0.proj_in.weight")
    return weights[name].ndim if name in weights else 0


def vae(weights: Weights, latent_scale: float) -> Config:
    """AutoencoderKL's."""
    levels = _count(weights, "encoder.down_blocks.")
    return {
        "in_channels": width(weights, "encoder.conv_in.weight", 1),
        "out_channels": width(weights, "decoder.conv_out.weight", 0),
        "latent_channels": width(weights, "decoder.conv_in.weight", 1),
        "block_out_channels": [
            width(weights, f"encoder.down_blocks.{k}.resnets.0.conv2.weight", 0)
            for k in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(weights, "encoder.down_blocks.0.resnets."),
        "mid_block_add_attention": _has(weights, "encoder.mid_block.attentions."),
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
        "scaling_factor": latent_scale,
    }


def text_encoder(weights: Weights, activation: str) -> Config:
    """CLIPTextConfig, for names with "text_model.". activation: "quick_gelu" where OpenAI's CLIP
    was trained, "gelu" where OpenCLIP was."""
    embedding = "text_model.embeddings.token_embedding.weight"
    hidden = width(weights, embedding, 1)
    layer = "text_model.encoder.layers."
    projection = "text_projection.weight"
    return {
        "vocab_size": width(weights, embedding, 0),
        "hidden_size": hidden,
        "intermediate_size": width(weights, f"{layer}0.mlp.fc1.weight", 0),
        "num_hidden_layers": _count(weights, layer),
        "num_attention_heads": _heads(hidden),
        "max_position_embeddings": width(
            weights, "text_model.embeddings.position_embedding.weight", 0
        ),
        "projection_dim": width(weights, projection, 0) if projection in weights else hidden,
        "hidden_act": activation,
        # As the published configurations: 2 stands for "the largest token is the end".
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
