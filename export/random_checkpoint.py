"""Checkpoints with random weights at real sizes, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ..errors import CheckpointError, nearest
from .demo import models

Parts = tuple[CLIPTextModel, UNet2DConditionModel, AutoencoderKL]


def write(family: str, destination: Path, seed: int = 0) -> Path:
    """Writes the checkpoint folder and returns it. family: "demo" or "sd1"."""
    if family not in FAMILIES:
        raise CheckpointError(
            f"family {family!r} is unknown{nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}"
        )
    torch.manual_seed(seed)
    tokenizer = models.train_tokenizer(models.captions(500, seed))
    text, unet, vae = FAMILIES[family](tokenizer.get_vocab_size())
    models.save(destination, tokenizer, text, unet, vae)
    return destination


def _demo(vocabulary: int) -> Parts:
    return models.text_encoder(vocabulary), models.unet(), models.vae()


def _sd1(vocabulary: int) -> Parts:
    """SD 1.5's sizes: 860 M, 123 M and 84 M parameters; the defaults of diffusers' classes are
    its."""
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )
    return text, unet, vae


FAMILIES: dict[str, Callable[[int], Parts]] = {"demo": _demo, "sd1": _sd1}
