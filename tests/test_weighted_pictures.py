"""Weights of words and of prompts move what a picture shows."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import sdfast
from sdfast.export.demo import scenes

PARTS = [10, pytest.param(100, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def usual() -> sdfast.Pipeline:
    """The fastest backend of this machine."""
    return sdfast.load("demo")


def redness(image: Image.Image) -> float:
    """How much redder than blue what is not background is, in levels of 255."""
    pixels = np.asarray(image, float)
    shape = np.abs(pixels - pixels[4, 64]).max(2) > 40
    red, _, blue = pixels[shape].mean(0)
    return float(red - blue)


@pytest.mark.parametrize("cases", PARTS)
def test_a_word_that_weighs_more_shows_more(usual: sdfast.Pipeline, cases: int) -> None:
    """A shape of two colours, one of which is said once more, with a weight."""
    gains = []
    for seed in range(cases):
        shape = scenes.SHAPES[seed % len(scenes.SHAPES)]
        prompt = f"a large red blue {shape} on a white background (red:{{}})"
        less, more = (
            redness(usual(prompt.format(weight), seed=seed, steps=10).images[0])
            for weight in (0.5, 1.5)
        )
        gains.append(more - less)
    assert np.mean(np.array(gains) > 0) >= 0.75
    assert np.mean(gains) > 0


@pytest.mark.parametrize("cases", PARTS)
def test_a_prompt_that_weighs_more_guides_more(usual: sdfast.Pipeline, cases: int) -> None:
    gains = []
    for seed in range(cases):
        shape = scenes.SHAPES[seed % len(scenes.SHAPES)]
        one, other = (f"a large {c} {shape} on a white background" for c in ("red", "blue"))
        less, more = (
            redness(usual(f"{one}:{w} AND {other}:{1 - w}", seed=seed, steps=10).images[0])
            for w in (0.25, 0.75)
        )
        gains.append(more - less)
    assert np.mean(np.array(gains) > 20) >= 0.9


def test_words_change_with_the_steps(usual: sdfast.Pipeline) -> None:
    """What is said at first decides the place, what is said then the colour."""
    prompt = "a large [red:green:0.3] circle on a white background"
    drawn = scenes.read(usual(prompt, seed=1).images[0])
    assert (drawn.colour, drawn.shape) == ("green", "circle")
    late = scenes.read(usual(prompt.replace("0.3", "0.95"), seed=1).images[0])
    assert late.colour == "red"
    never = usual("a large [red:green:1.0] circle on a white background", seed=1).images[0]
    plain = usual("a large red circle on a white background", seed=1).images[0]
    assert never.tobytes() == plain.tobytes()
