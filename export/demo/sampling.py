"""What the demo model's stages look at: pictures drawn and encoded, in grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTextModel

from . import models
from .loop import SEED

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Denoiser = Callable[[Tensor, Tensor, Tensor], Any]
"""latents [B, 4, h, w], timestep, context [B, 77, C] → an object whose `sample` is the noise."""


def grid(pictures: np.ndarray[Any, np.dtype[np.uint8]], columns: int) -> Image.Image:
    """uint8 [N, H, W, 3] as one picture of N / columns rows."""
    n, height, width, _ = pictures.shape
    rows = pictures.reshape(n // columns, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(rows.reshape(n // columns * height, columns * width, 3))


def bf16() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16)


def pixels(x: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    scaled = (x.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def encoded(autoencoder: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Latent means f32 of pictures u8 [N, 3, H, W], not scaled."""
    x = pictures.to(DEVICE).float().div(127.5).sub(1)
    x = x.contiguous(memory_format=torch.channels_last)
    return autoencoder.encode(x).latent_dist.mean.float().cpu()


def noise_error(denoise: Denoiser, latents: Tensor, context: Tensor) -> Tensor:
    """How far the noise that is found lies from the noise there is, at random timesteps; with
    min-SNR weights (arXiv:2303.09556, γ = 5)."""
    alphas = models.SCHEDULER.alphas_cumprod.to(DEVICE)
    t = torch.randint(0, len(alphas), (len(latents),), device=DEVICE)
    noise = torch.randn_like(latents)
    kept = alphas[t][:, None, None, None]
    with bf16():
        found = denoise(kept.sqrt() * latents + (1 - kept).sqrt() * noise, t, context).sample
    snr = alphas[t] / (1 - alphas[t])
    each = (found.float() - noise).square().mean((1, 2, 3))
    return (each * snr.clamp(max=5) / snr).mean()


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    autoencoder: AutoencoderKL,
    text: CLIPTextModel,
    tokenizer: Tokenizer,
    prompts: list[str],
    guidance: float = 4.0,
    steps: int = 20,
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One picture a prompt with DDIM, uint8 [N, 128, 128, 3]: what training looks at. The runtime
    is what draws pictures for users."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(len(prompts), 4, 16, 16, generator=generator).to(DEVICE)
    words = models.tokens(tokenizer, [""] * len(prompts) + prompts).to(DEVICE)
    context = text(words).last_hidden_state
    models.SCHEDULER.set_timesteps(steps)
    for t in models.SCHEDULER.timesteps:
        with bf16():
            unguided, guided = denoiser(torch.cat([x, x]), t, context).sample.float().chunk(2)
        x = models.SCHEDULER.step(unguided + guidance * (guided - unguided), t, x).prev_sample
    return pixels(autoencoder.decode(x / autoencoder.config.scaling_factor).sample)
