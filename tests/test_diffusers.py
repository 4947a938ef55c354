"""diffusers as the oracle: the same checkpoint, the same start, the same picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)

import sdfast
from sdfast import schedules, store
from sdfast.chunks import Chunker
from sdfast.conditioning import load_tokenizer
from sdfast.export.demo.models import CHECKPOINT
from sdfast.prompts import parse

PROMPT = "a small yellow star on a striped purple background, top left"


@pytest.fixture(scope="module")
def theirs() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, scheduler: Any, seed: int, steps: int, latents: Any = None) -> np.ndarray:
    pipe.scheduler = scheduler
    generator = torch.Generator().manual_seed(seed)
    images = pipe(
        PROMPT,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=generator,
        latents=latents,
    ).images
    return np.asarray(images[0]).astype(int)


def ours(demo: sdfast.Pipeline, seed: int, steps: int, **parameters: Any) -> np.ndarray:
    result = demo(PROMPT, seed=seed, steps=steps, guidance=4.0, rng="torch", **parameters)
    return np.asarray(result.images[0]).astype(int)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dpmpp_2m_karras_draws_the_picture_of_diffusers(
    demo: sdfast.Pipeline, theirs: Any, seed: int
) -> None:
    scheduler = DPMSolverMultistepScheduler.from_config(
        theirs.scheduler.config, use_karras_sigmas=True, final_sigmas_type="zero"
    )
    expected = drawn(theirs, Fractional(scheduler), seed, 20)
    assert np.abs(ours(demo, seed, 20) - expected).max() <= 2


class Fractional:
    """diffusers' DPM-Solver++ with the timesteps of its Karras levels as they are: it rounds them
    to whole numbers, so that its network is asked at slightly other noise levels than its latents
    have."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def set_timesteps(self, steps: int, device: Any = None) -> None:
        self._inner.set_timesteps(steps, device=device)
        betas = store.load("demo").manifest.betas
        ns = schedules.NoiseSchedule.from_betas(betas.name, betas.start, betas.end, betas.count)
        exact = [ns.timestep(float(sigma)) for sigma in self._inner.sigmas[:-1]]
        self._inner.timesteps = torch.tensor(exact, dtype=torch.float32)


@pytest.mark.parametrize("seed", [0, 1])
def test_euler_karras_draws_the_picture_of_diffusers(
    demo: sdfast.Pipeline, theirs: Any, seed: int
) -> None:
    scheduler = EulerDiscreteScheduler.from_config(
        theirs.scheduler.config, use_karras_sigmas=True, timestep_spacing="linspace"
    )
    # Its start is σ · noise, ours and that of diffusers' other schedulers √(σ² + 1) · noise.
    sigma = float(scheduler.sigmas[0])
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    latents = noise * (sigma**2 + 1) ** 0.5 / sigma
    expected = drawn(theirs, scheduler, seed, 20, latents)
    got = ours(demo, seed, 20, sampler="euler", schedule="karras")
    assert np.abs(got - expected).max() <= 2


def test_ddim_simple_draws_the_picture_of_diffusers(demo: sdfast.Pipeline, theirs: Any) -> None:
    scheduler = DDIMScheduler.from_config(
        theirs.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    expected = drawn(theirs, scheduler, 0, 20)
    got = ours(demo, 0, 20, sampler="ddim", schedule="simple")
    assert np.abs(got - expected).max() <= 2


LONG = f"{PROMPT}, " + "a large green ring at the right, " * 8 + "a blue background"


@pytest.mark.parametrize(
    "backend", ["onnxruntime", "openvino", pytest.param("torch", marks=pytest.mark.slow)]
)
def test_a_long_prompt_draws_the_picture_of_diffusers_for_its_context(
    theirs: Any, backend: str
) -> None:
    """Beside a short negative prompt, which goes on with a chunk that says nothing."""
    scheduler = DDIMScheduler.from_config(
        theirs.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    theirs.scheduler = scheduler
    bundle = store.load("demo")
    tokenizer = load_tokenizer(bundle.path / bundle.manifest.tokenizers["text_encoder"].file)
    chunks = Chunker(tokenizer, 77).chunks(parse(LONG).parts[0].at(1, 1))
    short = theirs.tokenizer(["a red star", ""], padding="max_length", max_length=77)
    ids = [*(list(chunk.ids) for chunk in chunks), *short.input_ids]
    with torch.no_grad():
        contexts = theirs.text_encoder(torch.tensor(ids))[0]
    assert len(contexts) == 4
    expected = theirs(
        prompt_embeds=contexts[:2].reshape(1, 154, -1),
        negative_prompt_embeds=contexts[2:].reshape(1, 154, -1),
        num_inference_steps=10,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    pipe = sdfast.load("demo", backend=backend, precision="fp32")
    for cache in (1, 2):
        got = pipe(
            LONG,
            "a red star",
            seed=0,
            steps=10,
            guidance=4.0,
            rng="torch",
            sampler="ddim",
            schedule="simple",
            cache=cache,
        ).images[0]
        difference = np.abs(np.asarray(got, int) - np.asarray(expected, int))
        assert difference.max() <= 2 if cache == 1 else difference.mean() <= 4
    pipe.close()
