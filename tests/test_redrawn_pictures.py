"""Whether pictures that start from pictures show what they are asked to: on scenes that are drawn,
by what is read from them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import sdfast
from sdfast import tiling
from sdfast.export.demo import scenes
from sdfast.export.demo.scenes import Scene

PARTS = [15, pytest.param(100, marks=pytest.mark.slow)]
INSIDE = (24, 24, 103, 103)  # around every large shape in the middle


@pytest.fixture(scope="module")
def usual() -> sdfast.Pipeline:
    """The fastest backend of this machine."""
    return sdfast.load("demo")


def mask(inner: tuple[int, int, int, int] = INSIDE) -> Image.Image:
    made = Image.new("L", (128, 128), 0)
    ImageDraw.Draw(made).rectangle(inner, fill=255)
    return made


def asked(seed: int, **fixed: str | None) -> Iterator[Scene]:
    rng = random.Random(seed)
    while True:
        scene = replace(scenes.sample(rng), **fixed)
        if scene.colour != scene.background:
            yield scene


@pytest.mark.parametrize("cases", PARTS)
def test_a_shape_is_recoloured_in_its_place(usual: sdfast.Pipeline, cases: int) -> None:
    rng, colours, places = random.Random(1), 0, 0
    befores = (s for s in asked(5, colour="red") if s.background != "blue")
    for seed, before in zip(range(cases), befores, strict=False):
        prompt = scenes.caption(replace(before, colour="blue"), rng)
        image = scenes.draw(before, rng)
        seen = scenes.read(usual(prompt, seed=seed, image=image, strength=0.6).images[0])
        colours += seen.colour == "blue"
        places += seen.place == (before.place or "centre")
    assert colours >= 0.9 * cases
    assert places >= 0.9 * cases


@pytest.mark.parametrize("cases", PARTS)
def test_only_what_is_inside_of_the_mask_is_drawn_anew(usual: sdfast.Pipeline, cases: int) -> None:
    rng, right = random.Random(2), 0
    inside = np.asarray(mask()) > 0
    befores, others = asked(6, place=None, size="large", pattern="plain"), asked(7)
    for seed, before, other in zip(range(cases), befores, others, strict=False):
        colour = other.colour if other.colour != before.background else before.colour
        after = replace(before, shape=other.shape, colour=colour)
        image = scenes.draw(before, rng)
        prompt = scenes.caption(after, rng)
        drawn = usual(prompt, seed=seed, image=image, mask=mask()).images[0]
        assert (np.asarray(drawn)[~inside] == np.asarray(image)[~inside]).all()
        right += all(scenes.read(drawn).agrees(after).values())
    assert right >= 0.85 * cases


def test_the_part_around_a_mask_is_drawn_larger(usual: sdfast.Pipeline) -> None:
    """A star of 28 pixels in a photograph of 512, drawn as large as the model knows stars."""
    photo = Image.new("RGB", (512, 384), scenes.COLOURS["green"][0])
    over = Image.new("L", photo.size, 0)
    ImageDraw.Draw(over).rectangle((280, 120, 343, 183), fill=255)
    result = usual(
        "a large white star on a green background", seed=1, image=photo, mask=over, mask_margin=4
    )
    drawn = result.images[0]
    assert drawn.size == photo.size
    assert (result.request.width, result.request.height) == (128, 128)
    outside = np.asarray(over) == 0
    assert (np.asarray(drawn)[outside] == np.asarray(photo)[outside]).all()
    part = drawn.crop((276, 116, 348, 188)).resize((128, 128), Image.Resampling.LANCZOS)
    seen = scenes.read(part)
    assert (seen.shape, seen.colour) == ("star", "white")


def test_pixels_around_a_picture_go_on_with_it(usual: sdfast.Pipeline) -> None:
    scene = Scene("circle", "red", "large", "blue")
    image = scenes.draw(scene)
    prompt = "a large red circle on a blue background"
    drawn = usual(prompt, seed=3, image=image, outpaint=(32, 0, 32, 0)).images[0]
    assert drawn.size == (192, 128)
    assert (np.asarray(drawn)[:, 32:160] == np.asarray(image)).all()
    around = np.delete(np.asarray(drawn, np.int16), np.s_[32:160], axis=1)
    assert np.abs(around - np.asarray(image, np.int16)[0, 0]).mean() < 12


@pytest.mark.parametrize("resize", ["latent", "stretch"])
def test_a_second_pass_is_of_the_first_ones_picture(usual: sdfast.Pipeline, resize: str) -> None:
    prompt, seen = "a large yellow star on a blue background", list[tuple[int, int | None]]()
    result = usual(
        prompt,
        seed=3,
        steps=10,
        count=2,
        hires={"scale": 1.5, "strength": 0.3, "resize": resize},
        callback=lambda done, of: seen.append((done, of)),
    )
    first = usual(prompt, seed=3, steps=10, count=2)
    assert seen[9] == (10, 10)
    assert seen[-1] == (13, 13)
    for image, small in zip(result.images, first.images, strict=True):
        assert image.size == (192, 192)
        back = image.resize((128, 128), Image.Resampling.BOX)
        assert np.abs(np.asarray(back, float) - np.asarray(small, float)).mean() < 12
    assert set(result.timings) > {"vae_encoder", "unet"}


def test_strength_0_is_the_picture_and_1_is_noise_alone(usual: sdfast.Pipeline) -> None:
    image = scenes.draw(Scene("ring", "black", "large", "orange"))
    prompt = "a large white cross on a green background"
    (untouched,) = usual(prompt, image=image, strength=0).images
    assert untouched.tobytes() == image.tobytes()
    plain = usual(prompt, seed=4, steps=5).images[0]
    anew = usual(prompt, seed=4, steps=5, image=image, strength=1).images[0]
    assert anew.tobytes() == plain.tobytes()
    masked = usual(prompt, image=image, mask=mask(), strength=0).images[0]
    assert masked.tobytes() == image.tobytes()


@pytest.mark.parametrize("part", ["strength", "denoise"])
@pytest.mark.parametrize("resize", ["stretch", "latent"])
def test_a_second_pass_of_strength_0_scales_alone(
    demo: sdfast.Pipeline, part: str, resize: str
) -> None:
    given: dict[str, Any] = {"seed": 3, "steps": 2, "width": 64, "height": 64}
    (first,) = demo("a large red star", **given).images
    second = {"scale": 1.5, part: 0, "resize": resize}
    (large,) = demo("a large red star", **given, hires=second).images
    assert large.tobytes() == first.resize((96, 96), Image.Resampling.LANCZOS).tobytes()


def test_a_picture_is_the_same_at_every_place_of_a_batch(demo: sdfast.Pipeline) -> None:
    image = scenes.draw(Scene("ring", "black", "large", "orange"))
    call = {"image": image, "mask": mask(), "strength": 0.7, "steps": 4}
    prompt = "a large red ring on an orange background"
    together = demo(prompt, seed=0, count=6, sampler="dpmpp_2m_sde", **call).images
    for seed in (0, 5):
        alone = demo(prompt, seed=seed, sampler="dpmpp_2m_sde", **call).images[0]
        assert alone.tobytes() == together[seed].tobytes()


def test_a_sampler_that_depends_on_data_redraws_too(demo: sdfast.Pipeline) -> None:
    image = scenes.draw(Scene("ring", "black", "large", "orange"))
    prompt = "a large red ring on an orange background"
    drawn = demo(prompt, seed=1, sampler="dpm_adaptive", image=image, mask=mask()).images[0]
    seen = scenes.read(drawn)
    assert (seen.shape, seen.colour, seen.background) == ("ring", "red", "orange")


def test_pictures_beyond_the_largest_are_drawn_in_tiles(usual: sdfast.Pipeline) -> None:
    """A circle in the middle of each tile becomes a green one there, and nothing else appears."""
    starts = [8 * start for start in tiling.axis(640 // 8, 128 // 8).starts]
    before = Image.new("RGB", (640, 128), scenes.COLOURS["blue"][0])
    circle = scenes.draw(Scene("circle", "red", "large", "blue"))
    for left in starts:
        before.paste(circle.crop((32, 0, 96, 128)), (left + 32, 0))
    prompt = "a large green circle on a blue background"
    drawn = usual(prompt, seed=1, image=before, width=640, height=128, strength=0.6).images[0]
    assert drawn.size == (640, 128)
    old, new = np.asarray(before, np.int16), np.asarray(drawn, np.int16)
    shapes = np.abs(old - old[0, 0]).max(2) > 60
    agree = (np.abs(new - new[2, 2]).max(2) > 60) == shapes
    assert agree.mean() > 0.97
    red, green, _ = new[shapes].mean(0)
    assert green > 2 * red
    assert np.abs(np.diff(new[:8], axis=1)).max() < 25  # above the circles, where seams would show
