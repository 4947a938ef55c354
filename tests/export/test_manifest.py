"""What bundle.json says of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from sdfast.bundle import Betas, Context, Sizes
from sdfast.errors import CheckpointError
from sdfast.export import manifest, random_checkpoint, recipes, sources
from sdfast.export.components import Checkpoint

CheckpointOf = Callable[[str], Checkpoint]
SD15 = recipes.load("sd15")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """family → its checkpoint, written and read once."""
    place = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda family: sources.read(random_checkpoint(f"tiny-{family}", place / family)))


def changed(checkpoint: Checkpoint, part: str, **entries: Any) -> Checkpoint:
    component = checkpoint.components[part]
    other = replace(component, config={**component.config, **entries})
    return replace(checkpoint, components={**checkpoint.components, part: other})


@pytest.mark.parametrize(
    ("family", "context"),
    [
        ("sd15", Context(77, 64, None, False)),
        ("sd21", Context(77, 128, None, False)),
        ("sdxl", Context(77, 64 + 128, 96, True)),
        ("sdxl-refiner", Context(77, 128, 96, False)),
    ],
)
def test_contexts_are_as_wide_as_the_text_encoders_together(
    read: CheckpointOf, family: str, context: Context
) -> None:
    checkpoint = read(family)
    found = manifest.describe("x", checkpoint, recipes.for_checkpoint(checkpoint))
    assert found.context == context
    assert (found.family, found.task) == (checkpoint.family, "text")
    assert (found.networks, found.tokenizers, found.files) == ({}, {}, {})


def test_a_controlnet_draws_nothing_by_itself(read: CheckpointOf) -> None:
    checkpoint = read("sd15-controlnet")
    found = manifest.describe("x", checkpoint, recipes.for_checkpoint(checkpoint))
    assert (found.betas, found.context, found.defaults) == (None, None, None)
    assert (found.task, found.latent_scale) == ("control", 1.0)


def test_the_noise_schedule_is_the_schedulers(read: CheckpointOf) -> None:
    found = manifest.describe("x", read("sd15"), SD15)
    assert found.betas == Betas("scaled_linear", 0.00085, 0.012, 1000, False)
    scheduler = {**read("sd15").scheduler, "rescale_betas_zero_snr": True}
    found = manifest.describe("x", replace(read("sd15"), scheduler=scheduler), SD15)
    assert found.betas is not None
    assert found.betas.zero_terminal_snr


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"trained_betas": [0.1]}, "has trained_betas; betas can be exported by name alone"),
        ({"beta_start": None}, "has no noise schedule"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "the first not above the last"),
        ({"num_train_timesteps": 2**40}, "must be from 2 to 100000"),
    ],
)
def test_a_schedule_that_is_none_is_refused(
    read: CheckpointOf, entries: dict[str, Any], message: str
) -> None:
    scheduler = {**read("sd15").scheduler, **entries}
    with pytest.raises(CheckpointError, match=message):
        manifest.describe("x", replace(read("sd15"), scheduler=scheduler), SD15)


def test_a_schedule_that_lacks_a_number_is_refused(read: CheckpointOf) -> None:
    scheduler = {k: v for k, v in read("sd15").scheduler.items() if k != "beta_end"}
    with pytest.raises(CheckpointError, match="lacks 'beta_end'"):
        manifest.describe("x", replace(read("sd15"), scheduler=scheduler), SD15)


@pytest.mark.parametrize("scale", [0, -0.18, "x", None, float("nan"), float("inf")])
def test_a_scale_of_latents_is_a_number_above_0(read: CheckpointOf, scale: object) -> None:
    with pytest.raises(CheckpointError, match="the VAE's scaling_factor is"):
        manifest.describe("x", changed(read("sd15"), "vae", scaling_factor=scale), SD15)


def test_pictures_are_of_the_size_that_the_unet_was_trained_on(read: CheckpointOf) -> None:
    found = manifest.describe("x", read("sd15"), SD15).sizes
    low, high = (getattr(SD15.profiles["height"], end) for end in ("minimum", "maximum"))
    # 16 latents a side; the U-Net halves them once.
    assert found == Sizes(128, 128, min(low, 128), high, 16, 4, 8)
    tall = changed(read("sd15"), "unet", sample_size=[96, 64])  # height and width
    found = manifest.describe("x", tall, SD15).sizes
    assert (found.width, found.height) == (512, 768)


@pytest.mark.parametrize("size", ["x", [64], [64, None], -64, 6.5, True])
def test_a_size_that_is_none_is_refused(read: CheckpointOf, size: object) -> None:
    with pytest.raises(CheckpointError, match=r"sample_size is .*; it must be a whole number"):
        manifest.describe("x", changed(read("sd15"), "unet", sample_size=size), SD15)


def test_a_fixed_size_is_the_pictures_size(read: CheckpointOf) -> None:
    sides = {"height": recipes.Profile(768, 768, 768), "width": recipes.Profile(256, 256, 256)}
    recipe = replace(SD15, profiles={**SD15.profiles, **sides})
    found = manifest.describe("x", read("sd15"), recipe).sizes
    assert (found.width, found.height, found.minimum, found.maximum) == (256, 768, 256, 768)


def test_sides_are_multiples_of_what_the_unet_halves(read: CheckpointOf) -> None:
    units = {"sd15": 2, "sdxl": 4, "sdxl-refiner": 8, "sd15-controlnet": 2}
    units |= {"sd15-t2i-adapter": 2, "sdxl-t2i-adapter": 4}
    assert {family: manifest.unit(read(family)) for family in units} == units
