"""The published models' configurations, and tiny ones of the same make.

Tiny models keep what shapes cannot tell as the published ones have it (32 groups, 64 channels a
head from SD 2 on), so that their single files read back to the same configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import schedulers
from ..demo import models

Config = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What a checkpoint of one family is made of.

    pipeline: diffusers' class, or None for one network alone
    components: diffusers' name → kind and configuration
    vocabulary: tokens of the text encoders; precision: of the files
    """

    pipeline: str | None
    components: Mapping[str, tuple[str, Config]]
    scheduler: Config
    vocabulary: int = 49408
    precision: torch.dtype = torch.float16
    index: tuple[tuple[str, bool], ...] = ()


_UNET, _VAE, _TINY_VAE = "UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny"
_CONTROL, _ADAPTER = "ControlNetModel", "T2IAdapter"
_TEXT, _PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
_XL = (("force_zeros_for_empty_prompt", True),)
_REFINER = (("force_zeros_for_empty_prompt", False), ("requires_aesthetics_score", True))


def _unet(side: int, channels: tuple[int, ...], attends: str, **rest: Any) -> Config:
    """attends: a letter for each level, x where its blocks have transformers."""
    return {
        "sample_size": side,
        "block_out_channels": list(channels),
        "down_block_types": [_block(a, "Down") for a in attends],
        "up_block_types": [_block(a, "Up") for a in reversed(attends)],
        **rest,
    }


def _block(attends: str, way: str) -> str:
    return f"CrossAttn{way}Block2D" if attends == "x" else f"{way}Block2D"


def _controlnet(unet: Config, *outer: int) -> Config:
    left_out = ("sample_size", "up_block_types", "in_channels", "upcast_attention")
    kept = {key: value for key, value in unet.items() if key not in left_out}
    return kept | {"conditioning_embedding_out_channels": list(outer)}


def _adapter(unet: Config) -> Config:
    """A T2I-Adapter for it: SDXL's adds to the middle too."""
    channels = unet["block_out_channels"]
    if "addition_embed_type" not in unet:
        return {"channels": channels}
    kind = {"adapter_type": "full_adapter_xl", "downscale_factor": 16}
    return {"channels": [*channels, channels[-1]], **kind}


def _vae(side: int, channels: tuple[int, ...], scale: float, **rest: Any) -> Config:
    return {
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": list(channels),
        "layers_per_block": 2,
        "sample_size": side,
        "scaling_factor": scale,
        **rest,
    }


def _text(hidden: int, layers: int, act: str, projection: int, vocabulary: int = 49408) -> Config:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // 64),
        "max_position_embeddings": 77,
        "hidden_act": act,
        "projection_dim": projection,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published; transformers reads it as "the largest token"
        "pad_token_id": 1,
    }


def _sizes_of(
    sd1: Config,
    sd2: Config,
    xl: Config,
    refiner: Config,
    vae: Mapping[str, Config],
    texts: Mapping[str, Config],
    outer: tuple[int, ...],
    tiny_vae: Config,
) -> dict[str, Sizes]:
    """Every family, of the given networks."""

    def pipeline(name: str, unet: Config, scheduler: Config, kind: str = "sd1") -> Sizes:
        parts = {"text_encoder": (_TEXT, texts[kind]), "unet": (_UNET, unet)}
        return Sizes(name, parts | {"vae": (_VAE, vae[kind])}, scheduler)

    def xl_pipeline(name: str, unet: Config, scheduler: Config, base: bool = True) -> Sizes:
        parts = {"text_encoder": (_TEXT, texts["sd1"])} if base else {}
        parts |= {"text_encoder_2": (_PROJECTED, texts["xl"]), "unet": (_UNET, unet)}
        parts["vae"] = (_VAE, vae["xl"])
        return Sizes(name, parts, scheduler, index=_XL if base else _REFINER)

    def alone(part: str, kind: str, config: Config) -> Sizes:
        return Sizes(None, {part: (kind, config)}, {})

    sd, xl_name = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
    side_1, side_xl = sd1["sample_size"], xl["sample_size"]
    return {
        "sd15": pipeline(sd, sd1, schedulers.SD1),
        "sd21": pipeline(sd, sd2, schedulers.SD2, "sd2"),
        "sd-turbo": pipeline(
            sd,
            {k: v for k, v in sd2.items() if k != "upcast_attention"} | {"sample_size": side_1},
            schedulers.SD_TURBO,
            "sd2",
        ),
        "sdxl": xl_pipeline(xl_name, xl, schedulers.SDXL),
        "sdxl-refiner": xl_pipeline(
            "StableDiffusionXLImg2ImgPipeline", refiner, schedulers.SDXL, base=False
        ),
        "sdxl-turbo": xl_pipeline(
            xl_name, xl | {"sample_size": side_xl // 2}, schedulers.SDXL_TURBO
        ),
        "lcm": pipeline(
            "LatentConsistencyModelPipeline",
            sd1 | {"time_cond_proj_dim": 256, "sample_size": side_1 * 3 // 2},
            schedulers.LCM,
        ),
        "sd15-inpaint": pipeline(
            "StableDiffusionInpaintPipeline", sd1 | {"in_channels": 9}, schedulers.SD1
        ),
        "instruct-pix2pix": pipeline(
            "StableDiffusionInstructPix2PixPipeline", sd1 | {"in_channels": 8}, schedulers.EDIT
        ),
        "sd15-controlnet": alone("controlnet", _CONTROL, _controlnet(sd1, *outer)),
        "sdxl-controlnet": alone("controlnet", _CONTROL, _controlnet(xl, *outer)),
        "sd15-t2i-adapter": alone("t2i_adapter", _ADAPTER, _adapter(sd1)),
        "sdxl-t2i-adapter": alone("t2i_adapter", _ADAPTER, _adapter(xl)),
        "taesd": alone("vae", _TINY_VAE, tiny_vae),
        "taesdxl": alone("vae", _TINY_VAE, tiny_vae),
    }


def _added(pooled: int, ids: int, each: int) -> Config:
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": each,
        "projection_class_embeddings_input_dim": pooled + ids * each,
        "use_linear_projection": True,
    }


_KL = (128, 256, 512, 512)
_REAL = _sizes_of(
    sd1=_unet(64, (320, 640, 1280, 1280), "xxx-", cross_attention_dim=768),
    sd2=_unet(
        96,
        (320, 640, 1280, 1280),
        "xxx-",
        attention_head_dim=[5, 10, 20, 20],
        cross_attention_dim=1024,
        use_linear_projection=True,
        upcast_attention=True,
    ),
    xl=_unet(
        128,
        (320, 640, 1280),
        "-xx",
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        transformer_layers_per_block=[1, 2, 10],
        **_added(1280, 6, 256),
    ),
    refiner=_unet(
        128,
        (384, 768, 1536, 1536),
        "-xx-",
        attention_head_dim=[6, 12, 24, 24],
        cross_attention_dim=1280,
        transformer_layers_per_block=4,
        **_added(1280, 5, 256),
    ),
    vae={
        "sd1": _vae(512, _KL, 0.18215),
        "sd2": _vae(768, _KL, 0.18215),
        "xl": _vae(1024, _KL, 0.13025, force_upcast=True),
    },
    texts={
        "sd1": _text(768, 12, "quick_gelu", 768),
        "sd2": _text(1024, 23, "gelu", 512),
        "xl": _text(1280, 32, "gelu", 1280),
    },
    outer=(16, 32, 96, 256),
    tiny_vae={"scaling_factor": 1.0},
)

TINY_VOCABULARY = 1000
_TINY_KL = (32, 32, 64, 64)
_TINY = _sizes_of(
    sd1=_unet(16, (32, 64), "x-", cross_attention_dim=64, layers_per_block=1),
    sd2=_unet(
        16,
        (64, 128),
        "xx",
        attention_head_dim=[1, 2],
        cross_attention_dim=128,
        layers_per_block=1,
        use_linear_projection=True,
        upcast_attention=True,
    ),
    xl=_unet(
        16,
        (32, 64, 128),
        "-xx",
        attention_head_dim=[1, 1, 2],
        cross_attention_dim=64 + 128,
        layers_per_block=1,
        transformer_layers_per_block=[1, 2, 1],
        **_added(96, 6, 32),
    ),
    refiner=_unet(
        16,
        (32, 64, 128, 128),
        "-xx-",
        attention_head_dim=[1, 1, 2, 2],
        cross_attention_dim=128,
        layers_per_block=1,
        transformer_layers_per_block=2,
        **_added(96, 5, 32),
    ),
    vae={
        "sd1": _vae(128, _TINY_KL, 0.18215, layers_per_block=1),
        "sd2": _vae(128, _TINY_KL, 0.18215, layers_per_block=1),
        "xl": _vae(128, _TINY_KL, 0.13025, layers_per_block=1, force_upcast=True),
    },
    texts={
        "sd1": _text(64, 2, "quick_gelu", 64, TINY_VOCABULARY),
        "sd2": _text(128, 2, "gelu", 128, TINY_VOCABULARY),
        "xl": _text(128, 3, "gelu", 96, TINY_VOCABULARY),
    },
    outer=(8, 16, 16, 32),
    tiny_vae={
        "encoder_block_out_channels": [16] * 4,
        "decoder_block_out_channels": [16] * 4,
        "num_encoder_blocks": [1, 1, 1, 1],
        "num_decoder_blocks": [1, 1, 1, 1],
        "scaling_factor": 1.0,
    },
)


def _demo() -> Sizes:
    """The demo model's, whose vocabulary is as large as its tokenizer's."""
    vocabulary = models.train_tokenizer(models.captions(500)).get_vocab_size()
    parts = {
        "text_encoder": (_TEXT, dict(models.text_encoder(vocabulary).config.to_dict())),
        "unet": (_UNET, dict(models.unet().config)),
        "vae": (_VAE, dict(models.vae().config)),
    }
    scheduler = dict(models.SCHEDULER.config) | {"_class_name": "DDIMScheduler"}
    return Sizes("StableDiffusionPipeline", parts, scheduler, vocabulary)


FAMILIES_OF_CHECKPOINTS = ("demo", *_REAL, *(f"tiny-{family}" for family in _TINY))


def sizes(family: str) -> Sizes:
    """family: one of FAMILIES_OF_CHECKPOINTS."""
    if family == "demo":
        return _demo()
    if family in _REAL:
        return _REAL[family]
    tiny = _TINY[family.removeprefix("tiny-")]
    return replace(tiny, vocabulary=TINY_VOCABULARY, precision=torch.float32)
