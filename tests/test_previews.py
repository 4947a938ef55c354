"""Previews: the linear map by itself, on the demo's pictures, and how often they are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import sdfast
from sdfast import backends, previews
from sdfast.bundle import Preview, Sizes
from sdfast.errors import BundleError, InvalidRequest
from sdfast.opened import Opened
from sdfast.store import load
from sdfast.tensors import Tensor

BIAS = (100.0, 127.25, 140.0)
SIZES = Sizes(64, 64, 64, 64, 8, 4, 8)
PROMPTS = (
    "a large red circle on a blue background",
    "a small yellow star on a purple background, top left",
    "a large green triangle on a striped white background",
    "orange gradient background with a big black cross",
    "a big purple square on a yellow background",
    "a large blue star on a striped orange background",
    "a large white cross on a striped green background",
    "a small red ring on a black gradient background, at the left",
)


def tensor(shape: tuple[int, ...], scale: float) -> tuple[Tensor, NDArray[np.float32]]:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * scale
    return Tensor.from_dlpack(values), values


def opened() -> Opened:
    return Opened(load("demo"), "onnxruntime", backends.Options())


@pytest.mark.parametrize("channels", [4, 16])
def test_a_preview_is_the_linear_map_rounded_and_clamped(channels: int) -> None:
    latent, values = tensor((2, channels, 3, 5), 100.0)
    weights = np.random.default_rng(1).standard_normal((3, channels)).round(3)
    rows = tuple(map(tuple, weights.tolist()))
    sizes = Sizes(64, 64, 64, 64, 8, channels, 8)
    pictures = previews.linear(latent, Preview(rows, BIAS, None), sizes)
    exact = np.einsum("kc,bchw->bhwk", weights, values.astype(float)) + np.array(BIAS)
    assert [picture.size for picture in pictures] == [(5, 3)] * 2
    assert {picture.mode for picture in pictures} == {"RGB"}
    got = np.stack([np.asarray(picture) for picture in pictures]).astype(float)
    assert (got == 0).any()
    assert (got == 255).any()
    # Half a step, and what float32 leaves of sums of some hundreds.
    assert np.abs(got - exact.clip(0, 255)).max() <= 0.5 + 1e-3


def drawn(demo: sdfast.Pipeline, prompt: str) -> tuple[Image.Image, Tensor]:
    """A picture, and the denoised latent that it was decoded from."""
    image = demo(prompt, seed=0, steps=8).images[0]
    *_, (_, plan) = demo._variants.plain.plans.idle._idle  # type: ignore[attr-defined]
    return image, plan.loop.result


def alike(a: Image.Image, b: Image.Image) -> tuple[float, float]:
    """Correlation, and decibels of the peak over the error."""
    x, y = (np.asarray(image).astype(float).ravel() for image in (a, b))
    return float(np.corrcoef(x, y)[0, 1]), float(10 * np.log10(255**2 / ((x - y) ** 2).mean()))


def test_previews_of_the_demo_look_like_its_pictures(demo: sdfast.Pipeline) -> None:
    draw = previews.previewer(opened())
    own, other = [], []
    for prompt in PROMPTS:
        image, latent = drawn(demo, prompt)
        (preview,) = draw(latent)
        small = image.reduce(8)
        assert preview.size == small.size
        own.append(alike(preview, small))
        other.append(alike(preview.rotate(180), small))
    # No linear map does better than 0.71 and 13.7 dB on pictures of such prompts: the demo's
    # latents are far from colours. A preview upside down tells how much its layout says.
    assert mean(r for r, _ in own) > 0.55
    assert mean(decibels for _, decibels in own) > 12
    assert mean(r for r, _ in own) > mean(r for r, _ in other) + 0.1


def test_a_bundle_without_a_map_says_what_to_do() -> None:
    found = opened()
    found.bundle = replace(found.bundle, manifest=replace(found.bundle.manifest, preview=None))
    with pytest.raises(BundleError, match="export it again"):
        previews.previewer(found)


def test_a_latent_of_another_model_is_refused() -> None:
    latent, _ = tensor((1, 3, 2, 2), 1.0)
    weights = ((1.0,) * 4,) * 3
    with pytest.raises(InvalidRequest, match="3 channels; the bundle's 4"):
        previews.linear(latent, Preview(weights, (0.0,) * 3, None), SIZES)


def watched(every: int, of: int | None, answer: bool | None) -> tuple[list[int], list[object]]:
    """Which of 7 evaluations are shown, and what the callback answers."""
    latent, _ = tensor((1, 4, 2, 2), 1.0)
    shown: list[int] = []

    def show(pictures: list[Image.Image], done: int, evaluations: int | None) -> bool | None:
        assert (len(pictures), evaluations) == (1, of)
        shown.append(done)
        return answer

    plain = [Image.new("RGB", (2, 2))]
    callback: Callable[..., object] = previews.every(every, lambda _: plain, show)
    return shown, [callback(k, of, latent) for k in range(1, 8)]


def test_previews_come_every_so_many_evaluations_but_the_last() -> None:
    assert watched(3, 7, None) == ([3, 6], [None] * 7)
    assert watched(1, 7, None)[0] == [1, 2, 3, 4, 5, 6]
    assert watched(1, None, None)[0] == [1, 2, 3, 4, 5, 6, 7]
    assert watched(3, 7, False)[1] == [None, None, False, None, None, False, None]
    with pytest.raises(InvalidRequest, match="1 or more"):
        previews.every(0, lambda _: [], lambda *_: None)
    with pytest.raises(InvalidRequest, match="preview_every is '5'"):
        previews.every("5", lambda _: [], lambda *_: None)  # type: ignore[arg-type]


def test_previews_of_a_run_stand_side_by_side() -> None:
    red, blue = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (3, 2), "blue")
    row = previews.side_by_side([red, blue])
    assert row.size == (6, 2)
    assert [row.getpixel((x, 1)) for x in (2, 3)] == [(255, 0, 0), (0, 0, 255)]
