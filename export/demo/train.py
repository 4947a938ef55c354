"""Trains the demo model, in three stages: about an hour and a quarter on 2 CPU cores.

    python -m sdfast.export.demo.train vae  --work DIR      the autoencoder, on drawn scenes
    python -m sdfast.export.demo.train text --work DIR      the text encoder, on captions
    python -m sdfast.export.demo.train unet --work DIR      the denoiser, on the latents of scenes
    python -m sdfast.export.demo.train save --work DIR      writes the checkpoint

    python -m sdfast.export.demo.train control --work DIR   a ControlNet for it (control.py)
    python -m sdfast.export.demo.train lora    --work DIR   a LoRA for it (lora.py)

The last two begin with the checkpoint and write beside it. Every stage continues where it stopped
with --resume, and writes its loss curve and a grid of samples as PNG into DIR. Seeds are fixed.
Held-out combinations (`scenes.combinations`) are never drawn or described.

The text encoder is trained first, to make what a caption says (shape, colour, size, place,
background) linearly readable from every token from the end of the text on, and then stays as it
is: the denoiser's cross-attention finds colours already bound to the shape or the background.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextModel

from . import control, lora, models, scenes
from .loop import SEED, Plan, fit
from .sampling import DEVICE, bf16, encoded, grid, noise_error, pixels, sample

PLANS = {
    "vae": Plan(steps=6500, batch=16, rate=2e-3),
    "text": Plan(steps=600, batch=64, rate=2e-3, warmup=100),
    "unet": Plan(steps=4000, batch=64, rate=1.5e-3, averaging=0.999),
    "control": control.PLAN,
    "lora": lora.PLAN,
}


def _drawn(count: int, seed: int) -> tuple[Tensor, list[scenes.Scene]]:
    """Pictures u8 [count, 3, 128, 128] and their scenes."""
    rng = random.Random(seed)
    chosen = [scenes.sample(rng) for _ in range(count)]
    pixels = np.stack([np.asarray(scenes.draw(scene, rng)) for scene in chosen])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), chosen


# --- the autoencoder -----------------------------------------------------------------------------


def train_vae(work: Path, resume: bool, plan: Plan) -> AutoencoderKL:
    """KL + L1 + L1 of the gradients, so that edges come out crisp. Most steps see 64 × 64 crops
    around the shape, where the edges are; the last seventh sees whole pictures."""
    torch.manual_seed(SEED)
    module = models.vae().to(DEVICE, memory_format=torch.channels_last)
    with torch.no_grad():  # begin all but noiseless, else the decoder learns to ignore the latent
        module.quant_conv.bias[4:] = -6
    pictures, chosen = _drawn(6000, seed=1)
    centres = [scenes.PLACES.index(scene.place or "centre") for scene in chosen]

    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = module.quant_conv(module.encoder(x)).chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        latent = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return module.decoder(module.post_quant_conv(latent)), mean, logvar

    def loss_of(step: int) -> Tensor:
        rng = random.Random(SEED * 1_000_003 + step)
        crops = step < plan.steps * 6 // 7
        batch = [rng.randrange(len(pictures)) for _ in range(plan.batch if crops else 4)]
        if crops:
            parts = []
            for k in batch:
                cx, cy = scenes.GRID[centres[k] % 3], scenes.GRID[centres[k] // 3]
                left, top = (
                    min(64, max(0, int(c - 32 + rng.uniform(-24, 24)) // 8 * 8)) for c in (cx, cy)
                )
                parts.append(pictures[k, :, top : top + 64, left : left + 64])
            x = torch.stack(parts)
        else:
            x = pictures[batch]
        x = x.to(DEVICE).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        with bf16():
            y, mean, logvar = forward(x)
        y, mean, logvar = y.float(), mean.float(), logvar.float()
        edges = sum(((y - x).diff(dim=axis)).abs().mean() for axis in (2, 3))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return (y - x).abs().mean() + (y - x).square().mean() + 0.5 * edges + 5e-4 * kl

    def show(best: nn.Module) -> Image.Image:
        assert isinstance(best, AutoencoderKL)
        with torch.no_grad():
            x = pictures[:16].to(DEVICE).float().div(127.5).sub(1)
            y = best.decode(best.encode(x).latent_dist.mean).sample
        error = (y.clamp(-1, 1) - x).square().mean().item() / 4
        print(f"vae reconstruction {-10 * math.log10(error):.2f} dB", flush=True)
        return grid(np.concatenate([pixels(x), pixels(y)]), 8)

    trained = fit("vae", plan, module, loss_of, work, resume, show)
    assert isinstance(trained, AutoencoderKL)
    return trained


# --- the text encoder ----------------------------------------------------------------------------


class Reader(nn.Module):
    """The text encoder and one linear read-out for each attribute, on every token."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text = text
        widths = (len(scenes.SHAPES), len(scenes.COLOURS), 2, len(scenes.COLOURS), 3, 10)
        self.heads = nn.ModuleList(nn.Linear(models.CONTEXT, width) for width in widths)


def _labels(scene: scenes.Scene) -> list[int]:
    colours = list(scenes.COLOURS)
    return [
        scenes.SHAPES.index(scene.shape),
        colours.index(scene.colour),
        scenes.SIZES.index(scene.size),
        colours.index(scene.background),
        scenes.PATTERNS.index(scene.pattern),
        scenes.PLACES.index(scene.place) if scene.place else 9,
    ]


def train_text(work: Path, resume: bool, plan: Plan, tokenizer: Tokenizer) -> CLIPTextModel:
    """Cross-entropy of the attributes, read from every token from the end of the text on."""
    torch.manual_seed(SEED)
    module = Reader(models.text_encoder(tokenizer.get_vocab_size())).to(DEVICE)
    end = tokenizer.token_to_id(models.END)

    def loss_of(step: int) -> Tensor:
        rng = random.Random(SEED * 1_000_003 + step)
        chosen = [scenes.sample(rng) for _ in range(plan.batch)]
        ids = models.tokens(tokenizer, [scenes.any_caption(s, rng) for s in chosen]).to(DEVICE)
        labels = torch.tensor([_labels(s) for s in chosen], device=DEVICE)
        with bf16():
            context = module.text(ids).last_hidden_state
            after = ids == end
            owner = after.nonzero()[:, 0]
            read = [head(context[after]) for head in module.heads]
        return sum(
            (F.cross_entropy(r.float(), labels[owner, k]) for k, r in enumerate(read)),
            torch.zeros(()),
        )

    trained = fit("text", plan, module, loss_of, work, resume)
    assert isinstance(trained, Reader)
    return trained.text


# --- the denoiser --------------------------------------------------------------------------------


def train_unet(
    work: Path,
    resume: bool,
    plan: Plan,
    tokenizer: Tokenizer,
    text: CLIPTextModel,
    autoencoder: AutoencoderKL,
) -> UNet2DConditionModel:
    """Epsilon prediction; one caption in ten is empty, so that guidance works."""
    torch.manual_seed(SEED)
    latents, chosen = _latents(work, autoencoder)
    module = models.unet().to(DEVICE, memory_format=torch.channels_last)
    text = text.to(DEVICE).requires_grad_(False)

    def loss_of(step: int) -> Tensor:
        rng = random.Random(SEED * 1_000_003 + step)
        picked = [rng.randrange(len(latents)) for _ in range(plan.batch)]
        words = ["" if rng.random() < 0.1 else scenes.any_caption(chosen[k], rng) for k in picked]
        ids = models.tokens(tokenizer, words).to(DEVICE)
        x = latents[picked].to(DEVICE).float().contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), bf16():
            context = text(ids).last_hidden_state
        return noise_error(module, x, context)

    def show(best: nn.Module) -> Image.Image:
        assert isinstance(best, UNet2DConditionModel)
        rng = random.Random(7)
        wanted = [scenes.sample(rng, held_out=True) for _ in range(24)]
        prompts = [scenes.caption(scene, rng) for scene in wanted]
        pictures = sample(best, autoencoder, text, tokenizer, prompts)
        right = [scenes.read(p).agrees(s) for p, s in zip(pictures, wanted, strict=True)]
        shares = {k: round(float(np.mean([r[k] for r in right])), 3) for k in right[0]}
        print(f"unet accuracy on held-out captions {shares}", flush=True)
        return grid(pictures, 8)

    trained = fit("unet", plan, module, loss_of, work, resume, show)
    assert isinstance(trained, UNet2DConditionModel)
    return trained


def _latents(work: Path, autoencoder: AutoencoderKL) -> tuple[Tensor, list[scenes.Scene]]:
    """Scaled latent means f16 [24000, 4, 16, 16] and their scenes; sets the scaling factor that
    brings them to unit deviation."""
    pictures, chosen = _drawn(24000, seed=2)
    kept = work / "latents.pt"
    if kept.exists():
        means = torch.load(kept, weights_only=True)
    else:
        with torch.no_grad(), bf16():
            means = torch.cat([encoded(autoencoder, part) for part in pictures.split(50)])
        torch.save(means, kept)
    factor = _scaling(means)
    autoencoder.register_to_config(scaling_factor=factor)
    return (means * factor).half(), chosen


def _scaling(means: Tensor) -> float:
    """What brings latents to unit deviation."""
    return round(1 / means.std().item(), 5)


# --- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("stage", choices=[*PLANS, "save"])
    parser.add_argument("--work", type=Path, required=True, help="folder of states and pictures")
    parser.add_argument("--dest", type=Path, default=models.CHECKPOINT, help="where save writes")
    parser.add_argument("--steps", type=int, help="steps of this stage instead of the plan's")
    parser.add_argument("--resume", action="store_true", help="continue from the last saved state")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    tokenizer = models.train_tokenizer(models.captions(5000))

    def plan(stage: str) -> Plan:
        chosen = PLANS[stage]
        if given.steps and stage == given.stage:
            chosen = replace(chosen, steps=given.steps)
        return chosen

    if given.stage == "vae":
        train_vae(given.work, given.resume, plan("vae"))
    elif given.stage == "text":
        train_text(given.work, given.resume, plan("text"), tokenizer)
    elif given.stage == "control":
        control.save(control.train(given.work, given.resume, plan("control")))
    elif given.stage == "lora":
        lora.save(lora.train(given.work, given.resume, plan("lora")))
    else:
        autoencoder, text = _finished(given.work, tokenizer)
        if given.stage == "unet":
            train_unet(given.work, given.resume, plan("unet"), tokenizer, text, autoencoder)
        else:
            means = torch.load(given.work / "latents.pt", weights_only=True)
            autoencoder.register_to_config(scaling_factor=_scaling(means))
            denoiser = models.unet()
            average = torch.load(given.work / "unet.pt", weights_only=True)["average"]
            average.pop("n_averaged")
            denoiser.load_state_dict({k.removeprefix("module."): v for k, v in average.items()})
            models.save(given.dest, tokenizer, text, denoiser, autoencoder)


def _finished(work: Path, tokenizer: Tokenizer) -> tuple[AutoencoderKL, CLIPTextModel]:
    autoencoder = models.vae()
    autoencoder.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["module"])
    reader = Reader(models.text_encoder(tokenizer.get_vocab_size()))
    reader.load_state_dict(torch.load(work / "text.pt", weights_only=True)["module"])
    return autoencoder.eval().to(DEVICE), reader.text.eval().to(DEVICE)


if __name__ == "__main__":
    main()
