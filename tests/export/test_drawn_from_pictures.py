"""Image to image and inpainting, by the runtime as by diffusers' pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray
from PIL import Image

from sdfast.export.verify import psnr

from .conftest import BundleOf, CheckpointOf
from .pictures import PROMPT, SEED, assert_equal, opened, ours, start, theirs

NEGATIVE = "a large red circle"
SIDE = 128
RUN = {"sampler": "euler", "schedule": "leading", "negative_prompt": NEGATIVE}


@pytest.fixture(autouse=True)
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' encoder gives the mean, as ours does, and not a draw."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator: self.mean)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def mask() -> NDArray[np.bool_]:
    """Of whole latents: of others diffusers takes the first pixel, and sdfast all that have one."""
    where = np.zeros((SIDE, SIDE), bool)
    where[24:88, 40:120] = True
    return where


def called(pipe: Any, steps: int, **call: Any) -> dict[str, Any]:
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading"
    )
    call |= {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": steps}
    return {**call, "guidance_scale": 5.0, "generator": torch.Generator().manual_seed(SEED)}


@pytest.mark.parametrize(
    ("family", "kind"),
    [("sd15", StableDiffusionImg2ImgPipeline), ("sdxl", StableDiffusionXLImg2ImgPipeline)],
)
@pytest.mark.parametrize(("steps", "strength"), [(5, 0.6), (4, 0.3)])
def test_image_to_image(
    family: str,
    kind: Any,
    steps: int,
    strength: float,
    image: Image.Image,
    checkpoint_of: CheckpointOf,
    bundle_of: BundleOf,
) -> None:
    pipe = opened(kind, checkpoint_of(family))
    want = theirs(pipe, **called(pipe, steps, image=image, strength=strength))
    got = ours(bundle_of(family), image=image, strength=strength, steps=steps, guidance=5.0, **RUN)
    assert_equal(got, want)


@pytest.mark.parametrize("strength", [0.75, 1.0])
@pytest.mark.parametrize("family", ["sd15", "sd15-inpaint"])
def test_inpainting(
    family: str,
    strength: float,
    image: Image.Image,
    checkpoint_of: CheckpointOf,
    bundle_of: BundleOf,
) -> None:
    pipe, where = opened(StableDiffusionInpaintPipeline, checkpoint_of(family)), mask()
    call = called(pipe, 4, image=image, mask_image=Image.fromarray(where), strength=strength)
    grey = torch.from_numpy(np.where(where[..., None], np.uint8(128), np.asarray(image)))
    shown = grey.permute(2, 0, 1)[None].float() / 127.5 - 1  # its own grey is between two levels
    want = theirs(pipe, **call, height=SIDE, width=SIDE, masked_image_latents=shown)
    got = ours(
        bundle_of(family),
        image=image,
        mask=Image.fromarray(where),
        strength=strength,
        steps=4,
        guidance=5.0,
        **RUN,
    )
    # At strength 1 diffusers scales the first noise by σ, and what it keeps is under other noise.
    bound = 1e-4 if strength < 1 else 0.05
    assert np.abs(got.latents - want.latents).max() <= bound * np.abs(want.latents).max()
    assert psnr(got.image[where], want.image[where]) >= 40
    assert (got.image[~where] == np.asarray(image)[~where]).all()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sd15", StableDiffusionControlNetPipeline),
        ("sdxl", StableDiffusionXLControlNetPipeline),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_control(
    family: str,
    kind: Any,
    several: bool,
    image: Image.Image,
    checkpoint_of: CheckpointOf,
    bundle_of: BundleOf,
) -> None:
    """One ControlNet, weighted; or two, the second for a part of the steps."""
    network = checkpoint_of(f"{family}-controlnet")
    steering = ControlNetModel.from_pretrained(network)
    other = image.rotate(90)
    scales, begins, ends = ([0.7, -0.4], [0.0, 0.25], [1.0, 0.75]) if several else (0.7, 0.0, 0.5)
    given = [steering, steering] if several else steering
    pipe = opened(kind, checkpoint_of(family), controlnet=given)
    call = called(pipe, 4, image=[image, other] if several else image)
    call |= {"controlnet_conditioning_scale": scales}
    call |= {"control_guidance_start": begins, "control_guidance_end": ends}
    # At the start diffusers scales the first noise by σ, and sdfast by √(σ² + 1).
    want = theirs(pipe, **call | start(pipe.scheduler, 4, SIDE, SIDE))
    path = str(bundle_of(f"{family}-controlnet").path)
    controls = [{"bundle": path, "image": image, "weight": 0.7, "end": 1.0 if several else 0.5}]
    if several:
        second = {"image": other, "weight": -0.4, "start": 0.25, "end": 0.75}
        controls.append({"bundle": path, **second})
    whole = {"steps": 4, "guidance": 5.0, "width": SIDE, "height": SIDE, **RUN}
    got = ours(bundle_of(family), control=controls, **whole)
    assert_equal(got, want)
    assert psnr(got.image, ours(bundle_of(family), **whole).image) < 40  # it does steer
