"""The demo and its ControlNet as users run them: shapes lie where the maps have them."""

from __future__ import annotations

import random
from itertools import chain

import numpy as np
import pytest
from PIL import Image

import sdfast
from sdfast.errors import InvalidRequest
from sdfast.export.demo import outlines, scenes


@pytest.fixture(scope="module")
def usual() -> sdfast.Pipeline:
    """The fastest backend of this machine."""
    return sdfast.load("demo")


def steered(usual: sdfast.Pipeline, count: int, seed: int) -> tuple[list[float], list[bool]]:
    """Overlaps of pictures with their maps, and whether they have the captions' two colours:
    combinations that training never saw, shapes anywhere."""
    rng = random.Random(seed)
    overlaps, coloured = list[float](), list[bool]()
    for k in range(count):
        scene = scenes.sample(rng, held_out=True)
        place = scenes.anywhere(scene, rng)
        control = {"bundle": "demo-control", "image": outlines.segmentation(place)}
        drawn = usual(scenes.loose_caption(scene, rng), seed=seed + k, control=control).images[0]
        overlaps.append(scenes.overlap(np.asarray(drawn), place))
        right = scenes.read(drawn).agrees(scene)
        coloured.append(right["colour"] and right["background"])
    return overlaps, coloured


def assert_steered(overlaps: list[float], coloured: list[bool]) -> None:
    assert np.mean([o >= 0.8 for o in overlaps]) >= 0.9
    assert np.mean(coloured) >= 0.9


def test_shapes_lie_where_the_maps_have_them(usual: sdfast.Pipeline) -> None:
    assert_steered(*steered(usual, 10, seed=51))


@pytest.mark.slow
def test_shapes_lie_where_100_maps_have_them(usual: sdfast.Pipeline) -> None:
    overlaps, coloured = zip(*(steered(usual, 10, 1000 * seed) for seed in range(10)), strict=True)
    assert_steered([*chain(*overlaps)], [*chain(*coloured)])


def test_each_image_may_have_a_map_of_its_own(usual: sdfast.Pipeline) -> None:
    places = [outlines.Outline("star", x, 64, 24) for x in (30, 64, 98, 40, 90)]
    maps = [outlines.segmentation(place) for place in places]
    control = {"bundle": "demo-control", "image": maps}
    drawn = usual("a red star on a white background", seed=3, count=5, control=control).images
    overlaps = [scenes.overlap(np.asarray(p), at) for p, at in zip(drawn, places, strict=True)]
    assert min(overlaps) > 0.6


def test_a_map_in_other_colours_is_refused(usual: sdfast.Pipeline) -> None:
    smooth = outlines.segmentation(outlines.Outline("star", 64, 64, 28)).resize((64, 64))
    smooth = smooth.resize((128, 128), Image.Resampling.BILINEAR)
    with pytest.raises(InvalidRequest, match=r"which is no class of bundle demo-control; its"):
        usual("a red star", control={"bundle": "demo-control", "image": smooth})


def test_bundles_that_do_not_go_together_are_refused(usual: sdfast.Pipeline) -> None:
    map_of = outlines.segmentation(outlines.Outline("star", 64, 64, 28))
    with pytest.raises(InvalidRequest, match="demo is for task text; control takes"):
        usual("a red star", control={"bundle": "demo", "image": map_of})
    with pytest.raises(InvalidRequest, match="demo-control is for task control"):
        sdfast.load("demo-control")("a red star")
