"""The linear map from latents to colours, which previews are drawn by: least squares over pictures
of random colours, smooth and flat, of several scales, that the VAE encodes.

The pictures that an export draws are too few colours for that: fitted to the one of the demo model
previews are 2 dB further from what is decoded, and fitted to what it decodes for 16 prompts 0.1 dB
nearer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..bundle import Preview
from .components import Checkpoint
from .networks import vae

SIDE = 256  # pixels of a picture
SMOOTH, FLAT = (16, 32, 64), (32, 64)  # pixels from colour to colour


def preview(checkpoint: Checkpoint) -> Preview:
    """The map of the checkpoint's VAE, and the scale of the decoder of previews that comes with it.

    Raises ValueError where the VAE's latents are not finite.
    """
    component = checkpoint.components["vae"]
    config, scale = component.config, vae.image_scale(component.config)
    pictures = np.stack(list(_pictures()))
    with torch.no_grad():
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        found = component.module().encode(pixels)  # type: ignore[operator]
        latents = found.latents if hasattr(found, "latents") else found.latent_dist.mean
    latents = (latents - (config.get("shift_factor") or 0)) * config["scaling_factor"]
    weights, bias = fit(latents.double().numpy(), _means(pictures, scale))
    other = checkpoint.components.get("preview")
    return Preview(weights, bias, None if other is None else vae.image_scale(other.config))


def fit(
    latents: NDArray[np.float64], colours: NDArray[np.float64]
) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    """weights [3, C] and bias [3]: colours [B, h, w, 3] ≈ weights · latents [B, C, h, w] + bias."""
    points = np.moveaxis(latents, 1, -1).reshape(-1, latents.shape[1])
    known = np.hstack([points, np.ones((len(points), 1))])
    if not np.isfinite(known).all():
        raise ValueError("the VAE's latents are not finite")
    solution, *_ = np.linalg.lstsq(known, colours.reshape(-1, 3), rcond=None)
    *weights, bias = [[float(f"{number:.6g}") for number in row] for row in solution.tolist()]
    return tuple(zip(*weights, strict=True)), tuple(bias)


def _pictures() -> Iterator[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    for step, how in (
        *((step, Image.Resampling.BICUBIC) for step in SMOOTH),
        *((step, Image.Resampling.NEAREST) for step in FLAT),
    ):
        colours = random.integers(0, 256, (SIDE // step, SIDE // step, 3), dtype=np.uint8)
        yield np.asarray(Image.fromarray(colours).resize((SIDE, SIDE), how))


def _means(pictures: NDArray[np.uint8], scale: int) -> NDArray[np.float64]:
    """The mean colour of what each latent stands for, 0…255."""
    count, side = len(pictures), SIDE // scale
    return pictures.reshape(count, side, scale, side, scale, 3).mean((2, 4))
