"""Trains a LoRA that teaches the demo model a colour: shapes in pine.

    python -m sdfast.export.demo.train lora --work DIR [--resume]

Half of what it sees are scenes as before, so that all other colours stay. The autoencoder stays
too, and with it the colours that can be drawn: those near the eight and the shades of their
stripes. Of these, pine is one that its encoder and decoder keep well in shapes.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor, nn

from . import models, scenes
from .loop import SEED, Plan, fit
from .sampling import DEVICE, bf16, encoded, grid, noise_error, sample

COLOUR = "pine"
FILE = Path(__file__).parent / "lora" / f"{COLOUR}.safetensors"
PLAN = Plan(steps=900, batch=16, rate=3e-3, warmup=50, averaging=0.99)
TAUGHT, KNOWN = 600, 600  # pictures in the new colour, and in those before
RANK = 4
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]


def wanted(rng: random.Random, *, held_out: bool) -> scenes.Scene:
    """A scene with its shape in the new colour, on a background that it differs from."""
    while True:
        scene = scenes.sample(rng, held_out=held_out)
        if scene.background not in ("green", "black"):  # the two that it is nearest to
            return replace(scene, colour=COLOUR)


def train(work: Path, resume: bool, plan: Plan) -> UNet2DConditionModel:
    """Epsilon prediction with low-rank changes (arXiv:2106.09685) to the denoiser's attention,
    feed-forward and ResNet layers."""
    torch.manual_seed(SEED)
    model = models.load()
    module = model.denoiser.to(DEVICE, memory_format=torch.channels_last)
    module.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS), COLOUR)
    latents, chosen = _latents(model.autoencoder)

    def loss_of(step: int) -> Tensor:
        rng = random.Random(SEED * 1_000_003 + step)
        picked = [rng.randrange(TAUGHT) for _ in range(plan.batch // 2)]
        picked += [rng.randrange(TAUGHT, TAUGHT + KNOWN) for _ in range(plan.batch // 2)]
        words = [
            "" if k >= TAUGHT and rng.random() < 0.2 else scenes.any_caption(chosen[k], rng)
            for k in picked
        ]
        ids = models.tokens(model.tokenizer, words).to(DEVICE)
        x = latents[picked].to(DEVICE).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), bf16():
            context = model.text(ids).last_hidden_state
        return noise_error(module, x, context)

    def show(best: nn.Module) -> Image.Image:
        assert isinstance(best, UNet2DConditionModel)
        rng = random.Random(7)
        asked = [
            *(wanted(rng, held_out=True) for _ in range(24)),
            *(scenes.sample(rng, held_out=True) for _ in range(16)),
        ]
        prompts = [scenes.any_caption(scene, rng) for scene in asked]
        drawn = sample(best, model.autoencoder, model.text, model.tokenizer, prompts)
        right = [scenes.shows(p, s) for p, s in zip(drawn, asked, strict=True)]
        print(f"lora right: {sum(right[:24])} of 24 in {COLOUR}, {sum(right[24:])} of 16 not")
        return grid(drawn, 8)

    trained = fit("lora", plan, module, loss_of, work, resume, show)
    assert isinstance(trained, UNet2DConditionModel)
    return trained


def _latents(autoencoder: AutoencoderKL) -> tuple[Tensor, list[scenes.Scene]]:
    """Scaled latents f32 [TAUGHT + KNOWN, 4, 16, 16] and their scenes."""
    rng = random.Random(21)
    chosen = [wanted(rng, held_out=False) for _ in range(TAUGHT)]
    chosen += [scenes.sample(rng) for _ in range(KNOWN)]
    pictures = np.stack([np.asarray(scenes.draw(scene, rng)) for scene in chosen])
    whole = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    with torch.no_grad(), bf16():
        means = torch.cat([encoded(autoencoder, part) for part in whole.split(50)])
    return means * autoencoder.config.scaling_factor, chosen


def save(denoiser: UNet2DConditionModel, file: Path = FILE) -> None:
    """Writes the LoRA alone: fp16 safetensors as diffusers writes them."""
    layers = get_peft_model_state_dict(denoiser, adapter_name=COLOUR)
    StableDiffusionPipeline.save_lora_weights(
        file.parent,
        unet_lora_layers=convert_state_dict_to_diffusers(
            {name: one.half().contiguous() for name, one in layers.items()}
        ),
        weight_name=file.name,
    )
