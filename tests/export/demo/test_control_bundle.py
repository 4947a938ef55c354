"""The demo and its ControlNet as bundles, with the sampler that users get: shapes lie where the
maps have them."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdfast import samplers, schedules, store
from sdfast.bundle import noise_schedule
from sdfast.export.demo import outlines, scenes

from ..loops import Networks

STEPS, GUIDANCE = 20, 4.0


def steered(count: int, seed: int) -> tuple[list[float], list[bool]]:
    """Overlaps of pictures with their maps, and whether they have the captions' two colours:
    combinations that training never saw, shapes anywhere."""
    rng = random.Random(seed)
    wanted = [scenes.sample(rng, held_out=True) for _ in range(count)]
    places = [scenes.anywhere(scene, rng) for scene in wanted]
    prompts = [scenes.loose_caption(scene, rng) for scene in wanted]
    drawn = draw(prompts, [np.asarray(outlines.segmentation(at)) for at in places], seed)
    right = [scenes.read(p).agrees(s) for p, s in zip(drawn, wanted, strict=True)]
    return (
        [scenes.overlap(p, at) for p, at in zip(drawn, places, strict=True)],
        [r["colour"] and r["background"] for r in right],
    )


def draw(prompts: list[str], maps: list[NDArray[np.uint8]], seed: int) -> NDArray[np.uint8]:
    run, control = Networks(store.load("demo")), Networks(store.load("demo-control"))
    schedule, count = noise_schedule(run.bundle.betas), len(prompts)
    rows = run.conditions([*prompts, *[""] * count], scenes.SIDE, scenes.SIDE)
    condition = np.stack(maps).transpose(0, 3, 1, 2).astype(np.float32) / 255
    rows["condition"] = np.concatenate([condition, condition])
    rows["scale"] = np.ones(2 * count, np.float32)
    width = run.bundle.manifest.networks["unet_adapters"].inputs["image_keys_values"].shape[2]
    rows["image_keys_values"] = np.zeros((2 * count, 1, width or 0), np.float32)

    def model(x: NDArray[Any], sigma: float) -> NDArray[Any]:
        latent = (x / (sigma**2 + 1) ** 0.5).astype(np.float32)
        feed = rows | {
            "latent": np.concatenate([latent, latent]),
            "timestep": np.full(2 * count, schedule.timestep(sigma), np.float32),
        }
        noise = run.noise(feed | control("controlnet", feed), "unet_adapters")
        guided, unguided = noise[:count], noise[count:]
        return x - sigma * (unguided + GUIDANCE * (guided - unguided)).astype(np.float64)

    sigmas = schedules.sigmas("karras", STEPS, schedule)
    noise = np.random.default_rng(seed).standard_normal((count, 4, 16, 16))
    x = samplers.get("dpmpp_2m").sample(model, noise * sigmas[0], sigmas)
    images: NDArray[np.uint8] = run("vae_decoder", {"latent": x.astype(np.float32)})["image"]
    return images


def assert_steered(overlaps: list[float], coloured: list[bool]) -> None:
    assert np.mean([o >= 0.8 for o in overlaps]) >= 0.9
    assert np.mean(coloured) >= 0.9


def test_shapes_lie_where_the_maps_have_them() -> None:
    assert_steered(*steered(10, seed=51))


@pytest.mark.slow
def test_shapes_lie_where_100_maps_have_them() -> None:
    overlaps, coloured = zip(*(steered(10, seed) for seed in range(60, 70)), strict=True)
    assert_steered([*chain(*overlaps)], [*chain(*coloured)])
