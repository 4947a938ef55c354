"""Whether the demo bundle draws what it is asked: captions that training never saw, of
combinations of shape, colour, size and background that it never saw either."""

from __future__ import annotations

import random

import numpy as np
import pytest

import sdfast
from sdfast import samplers
from sdfast.export.demo import scenes

AT_LEAST = {"colour": 0.90, "shape": 0.85, "size": 0.80, "background": 0.90}


@pytest.mark.parametrize("cases", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_pictures_show_what_the_prompts_ask(demo: sdfast.Pipeline, cases: int) -> None:
    rng = random.Random(2024)
    right: list[dict[str, bool]] = []
    for seed in range(cases):
        scene = scenes.sample(rng, held_out=True)
        image = demo(
            scenes.caption(scene, rng), seed=seed, steps=20, sampler="dpmpp_2m", schedule="karras"
        ).images[0]
        right.append(scenes.read(image).agrees(scene))
    shares = {name: float(np.mean([r[name] for r in right])) for name in right[0]}
    print(shares)
    assert all(shares[name] >= least for name, least in AT_LEAST.items()), shares


@pytest.mark.slow
def test_every_static_sampler_draws_in_the_precision_of_this_machine() -> None:
    """One that takes differences of evaluations is the first to miss digits that are rounded."""
    usual = sdfast.load("demo")
    rng = random.Random(2)
    asked = [scenes.sample(rng, held_out=True) for _ in range(3)]
    for name in (n for n in samplers.names() if samplers.get(n).static):
        right = [
            scenes.read(usual(scenes.caption(scene, rng), seed=seed, sampler=name).images[0])
            .agrees(scene)
            .values()
            for seed, scene in enumerate(asked)
        ]
        assert np.mean([ok for of in right for ok in of]) >= 0.9, name
