"""Pictures by sdfast and by diffusers, with the latents that they were decoded from."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

import sdfast
from sdfast.bundle import Bundle
from sdfast.export.verify import psnr

PROMPT = "a small yellow star on a striped purple background, top left"
SEED = 3


@dataclass(frozen=True)
class Drawn:
    """latents f32 [1, 4, h, w] at the end of the run; image u8 [H, W, 3]"""

    latents: NDArray[np.float32]
    image: NDArray[np.uint8]


def ours(bundle: Bundle, prompt: str = PROMPT, **parameters: Any) -> Drawn:
    """The runtime's picture."""
    pipeline = sdfast.load(bundle.path, "onnxruntime", threads=1)
    image = pipeline(prompt, seed=SEED, rng="torch", **parameters).images[0]
    ((_, plan),) = pipeline._variants.plain.plans.idle._idle  # that of the one request
    latents = np.array(plan.loop.result)
    pipeline.close()
    return Drawn(latents, np.asarray(image))


def theirs(pipe: DiffusionPipeline, **call: Any) -> Drawn:
    """The picture of diffusers' pipeline."""
    seen: list[torch.Tensor] = []

    def see(pipe: Any, step: int, t: Any, given: dict[str, torch.Tensor]) -> dict[str, Any]:
        seen.append(given["latents"])
        return {}

    image = pipe(callback_on_step_end=see, **call).images[0]
    return Drawn(seen[-1].numpy(), np.asarray(image))


def opened(kind: type[DiffusionPipeline], folder: Path, **parts: Any) -> Any:
    """diffusers' pipeline of a checkpoint's folder, in float32 and without watermarks."""
    if "add_watermarker" in signature(kind).parameters:
        parts["add_watermarker"] = False
    pipe = kind.from_pretrained(folder, torch_dtype=torch.float32, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start(scheduler: Any, steps: int, height: int, width: int) -> dict[str, Any]:
    """latents and generator that begin a run of diffusers where ours begins: at √(σ² + 1) times the
    seed's first draw. Its scheduler of some timestep_spacing begins at σ times it."""
    scheduler.set_timesteps(steps)
    sigma, scale = float(scheduler.sigmas[0]), float(scheduler.init_noise_sigma)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, 4, height // 8, width // 8, generator=generator)
    return {"latents": noise * ((sigma**2 + 1) ** 0.5 / scale), "generator": generator}


def assert_equal(got: Drawn, want: Drawn, relative: float = 1e-4) -> None:
    """The same latents, but for float32 summed in another order; the same picture, one that shows
    something."""
    assert want.image.std() > 5
    gap = np.abs(got.latents - want.latents).max()
    assert gap <= relative * np.abs(want.latents).max()
    assert psnr(got.image, want.image) >= 40
