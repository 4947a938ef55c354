"""Trains the demo model's ControlNet: the shape where a semantic map has it, the rest as the
caption says.

    python -m sdfast.export.demo.train control --work DIR [--resume]

The map is `outlines.segmentation`, at the picture's full size. The network is diffusers'
ControlNetModel (arXiv:2302.05543), small: only its middle reads the caption, since the map says
what has to be where. The denoiser stays as it is.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from . import models, outlines, scenes
from .loop import SEED, Plan, fit
from .sampling import DEVICE, Denoiser, bf16, encoded, grid, noise_error, sample

FOLDER = Path(__file__).parent / "controlnet"
PLAN = Plan(steps=2000, batch=16, rate=1.5e-3, averaging=0.99)
PICTURES = 3000


def network(denoiser: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for the denoiser that begins with its weights, where it has the same layers."""
    control = ControlNetModel(
        block_out_channels=denoiser.config.block_out_channels,
        layers_per_block=denoiser.config.layers_per_block,
        down_block_types=("DownBlock2D",) * 3,
        cross_attention_dim=denoiser.config.cross_attention_dim,
        attention_head_dim=denoiser.config.attention_head_dim,
        norm_num_groups=denoiser.config.norm_num_groups,
        conditioning_embedding_out_channels=(8, 16, 32, 48),
    )
    ours = control.state_dict()
    shared = {name: one for name, one in denoiser.state_dict().items() if name in ours}
    control.load_state_dict(shared, strict=False)
    return control


def controlled(
    denoiser: UNet2DConditionModel, control: nn.Module, maps: Tensor, weight: float = 1.0
) -> Denoiser:
    """The denoiser with the residuals of maps f32 [B, 3, 8h, 8w], 0…1, added. Where there are
    several rows for each map, as of guidance, they are the maps in order, repeated."""

    def denoise(latents: Tensor, t: Tensor, context: Tensor) -> Any:
        rows = maps.repeat(len(latents) // len(maps), 1, 1, 1)
        down, middle = control(
            latents, t, context, controlnet_cond=rows, conditioning_scale=weight, return_dict=False
        )
        return denoiser(
            latents,
            t,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        )

    return denoise


def condition(places: list[outlines.Outline]) -> Tensor:
    """Their segmentations as f32 [B, 3, SIDE, SIDE], 0…1."""
    maps = np.stack([np.asarray(outlines.segmentation(at)) for at in places])
    found = torch.from_numpy(maps).permute(0, 3, 1, 2).to(DEVICE).float().div(255)
    return found.contiguous(memory_format=torch.channels_last)


def describe(scene: scenes.Scene, rng: random.Random) -> str:
    """A caption that leaves the map its say: it names no place and no size, or any, or none of
    anything."""
    chance = rng.random()
    if chance < 0.1:
        return ""
    if chance < 0.6:
        return scenes.loose_caption(scene, rng)
    place = None if chance < 0.8 else rng.choice(scenes.PLACES)
    size = scene.size if chance < 0.9 else rng.choice(scenes.SIZES)
    named = scenes.Scene(scene.shape, scene.colour, size, scene.background, scene.pattern, place)
    return scenes.caption(named, rng)


def train(work: Path, resume: bool, plan: Plan) -> ControlNetModel:
    """Epsilon prediction through the frozen denoiser. Draws are of combinations that are not held
    out, with their shapes anywhere."""
    torch.manual_seed(SEED)
    model = models.load()
    denoiser = model.denoiser.to(DEVICE, memory_format=torch.channels_last)
    module = network(denoiser).to(DEVICE, memory_format=torch.channels_last)
    chosen, places = _scenes(PICTURES, seed=11, held_out=False)
    pictures = np.stack(
        [np.asarray(scenes.paint(s, at)) for s, at in zip(chosen, places, strict=True)]
    )
    parts = torch.from_numpy(pictures).permute(0, 3, 1, 2).split(50)
    with torch.no_grad(), bf16():
        latents = torch.cat([encoded(model.autoencoder, part) for part in parts])
    latents = latents * model.autoencoder.config.scaling_factor

    def loss_of(step: int) -> Tensor:
        rng = random.Random(SEED * 1_000_003 + step)
        picked = [rng.randrange(len(latents)) for _ in range(plan.batch)]
        words = [describe(chosen[k], rng) for k in picked]
        ids = models.tokens(model.tokenizer, words).to(DEVICE)
        x = latents[picked].to(DEVICE).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), bf16():
            context = model.text(ids).last_hidden_state
        maps = condition([places[k] for k in picked])
        return noise_error(controlled(denoiser, module, maps), x, context)

    def show(best: nn.Module) -> Image.Image:
        wanted, there = _scenes(24, seed=7, held_out=True)
        rng = random.Random(7)
        prompts = [scenes.loose_caption(scene, rng) for scene in wanted]
        maps = condition(there)
        steered = controlled(denoiser, best, maps)
        drawn = sample(steered, model.autoencoder, model.text, model.tokenizer, prompts)
        overlaps = [scenes.overlap(p, at) for p, at in zip(drawn, there, strict=True)]
        print(f"control overlaps {np.round(np.sort(overlaps), 2).tolist()}", flush=True)
        shown = np.stack([np.asarray(outlines.segmentation(at)) for at in there])
        return grid(np.stack([shown, drawn], axis=1).reshape(-1, *drawn.shape[1:]), 8)

    trained = fit("control", plan, module, loss_of, work, resume, show)
    assert isinstance(trained, ControlNetModel)
    return trained


def _scenes(
    count: int, seed: int, held_out: bool
) -> tuple[list[scenes.Scene], list[outlines.Outline]]:
    rng = random.Random(seed)
    chosen = [scenes.sample(rng, held_out=held_out) for _ in range(count)]
    return chosen, [scenes.anywhere(scene, rng) for scene in chosen]


def save(control: ControlNetModel, folder: Path = FOLDER) -> None:
    """Writes the ControlNet: fp16 safetensors in diffusers' layout."""
    control.half().save_pretrained(folder, safe_serialization=True)
    control.float()
