"""Every family, exported, draws what diffusers' pipeline of that family draws."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

from .conftest import BundleOf, CheckpointOf
from .pictures import PROMPT, SEED, assert_equal, opened, ours, start, theirs

NEGATIVE = "a large red circle"
STEPS = 3


@pytest.mark.parametrize(
    ("family", "kind", "spacing", "negative", "sides"),
    [
        ("sd15", StableDiffusionPipeline, "leading", NEGATIVE, (128, 192)),
        ("sd21", StableDiffusionPipeline, "linspace", "", (128, 128)),
        ("sdxl", StableDiffusionXLPipeline, "leading", "", (160, 128)),  # zeros for a text
        ("sdxl", StableDiffusionXLPipeline, "trailing", NEGATIVE, (128, 128)),
    ],
)
def test_text_becomes_the_picture_of_diffusers(
    family: str,
    kind: Any,
    spacing: str,
    negative: str,
    sides: tuple[int, int],
    checkpoint_of: CheckpointOf,
    bundle_of: BundleOf,
) -> None:
    bundle = bundle_of(family)
    width, height = sides
    pipe = opened(kind, checkpoint_of(family))
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing=spacing
    )
    want = theirs(
        pipe,
        prompt=PROMPT,
        negative_prompt=negative or None,
        num_inference_steps=STEPS,
        guidance_scale=6.0,
        width=width,
        height=height,
        **start(pipe.scheduler, STEPS, height, width),
    )
    got = ours(
        bundle,
        negative_prompt=negative,
        sampler="euler",
        schedule=spacing,
        steps=STEPS,
        guidance=6.0,
        width=width,
        height=height,
    )
    assert_equal(got, want)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("sd-turbo", StableDiffusionPipeline), ("sdxl-turbo", StableDiffusionXLPipeline)],
)
def test_few_step_models_draw_so_with_their_own_schedulers(
    family: str, kind: Any, checkpoint_of: CheckpointOf, bundle_of: BundleOf
) -> None:
    bundle = bundle_of(family)
    side = bundle.sizes.width
    pipe = opened(kind, checkpoint_of(family))
    want = theirs(
        pipe,
        prompt=PROMPT,
        num_inference_steps=2,
        guidance_scale=0.0,  # diffusers' way to leave it out
        **start(pipe.scheduler, 2, side, side),
    )
    assert_equal(ours(bundle, steps=2), want)


def test_an_lcm_draws_so_with_its_own_scheduler(
    checkpoint_of: CheckpointOf, bundle_of: BundleOf
) -> None:
    bundle = bundle_of("lcm")
    pipe = opened(LatentConsistencyModelPipeline, checkpoint_of("lcm"))
    want = theirs(
        pipe,
        prompt=PROMPT,
        timesteps=[999, 749, 499, 249],
        guidance_scale=bundle.defaults.guidance,
        generator=torch.Generator().manual_seed(SEED),
    )
    assert_equal(ours(bundle), want)


def test_the_refiner_finishes_latents_as_diffusers_does(
    checkpoint_of: CheckpointOf, bundle_of: BundleOf
) -> None:
    bundle = bundle_of("sdxl-refiner")
    pipe = opened(StableDiffusionXLImg2ImgPipeline, checkpoint_of("sdxl-refiner"))
    pipe.scheduler.set_timesteps(5)
    sigmas = [float(sigma) for sigma in pipe.scheduler.sigmas[2:]]  # timesteps 401, 201, 1
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(SEED))
    want = theirs(
        pipe,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        image=noise * (sigmas[0] ** 2 + 1) ** 0.5,
        num_inference_steps=5,
        denoising_start=0.5,
        guidance_scale=6.0,
    )
    got = ours(
        bundle, negative_prompt=NEGATIVE, sampler="euler", sigmas=tuple(sigmas), guidance=6.0
    )
    assert_equal(got, want)


def test_random_checkpoints_say_which_diffusers_they_are_for(checkpoint_of: CheckpointOf) -> None:
    index = json.loads((checkpoint_of("sd15") / "model_index.json").read_text())
    assert index["_diffusers_version"] == version("diffusers")  # inpainting does not open without
