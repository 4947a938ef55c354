from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from sdfast.export.demo import scenes
from sdfast.export.demo.scenes import Scene


def test_the_reader_is_right_on_99_of_100_drawn_scenes() -> None:
    rng = random.Random(1)
    wrong: Counter[str] = Counter()
    count = 200
    for k in range(count):
        scene = scenes.sample(rng, held_out=k % 2 == 0)
        reading = scenes.read(scenes.draw(scene, rng))
        assert reading.confidence > 0.8
        wrong.update(name for name, right in reading.agrees(scene).items() if not right)
    assert all(missed <= 0.01 * count for missed in wrong.values()), wrong


def test_the_reader_notices_each_change() -> None:
    scene = Scene("star", "red", "small", "blue", "striped", "top left")
    other = Scene("ring", "green", "large", "white", "gradient", "bottom right")
    assert not any(scenes.read(scenes.draw(scene)).agrees(other).values())
    assert all(scenes.read(scenes.draw(scene)).agrees(scene).values())


def test_an_empty_picture_has_no_confidence() -> None:
    blank = np.full((128, 128, 3), scenes.COLOURS["blue"][0], np.uint8)
    reading = scenes.read(blank)
    assert (reading.confidence, reading.background, reading.pattern) == (0.0, "blue", "plain")
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert scenes.read(noise).confidence < 0.5


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="128×128"):
        scenes.read(np.zeros((64, 64, 3), np.uint8))


def test_held_out_combinations_are_apart_and_cover_every_value() -> None:
    held, seen = (set(scenes.combinations(held_out=flag)) for flag in (True, False))
    assert not held & seen
    assert len(held) + len(seen) == 6 * 8 * 2 * 7
    for attribute in ("shape", "colour", "size", "background"):
        assert {getattr(s, attribute) for s in held} == {getattr(s, attribute) for s in seen}


def test_captions_name_everything_in_many_wordings() -> None:
    scene = Scene("star", "red", "small", "blue", "striped", "top left")
    rng = random.Random(0)
    wordings = {scenes.caption(scene, rng) for _ in range(500)}
    assert len(wordings) > 50
    for words in wordings:
        assert all(word in words for word in ("red star", "blue", "top left"))
        assert any(word in words for word in ("small", "little", "tiny"))
        assert "stripe" in words


def test_drawing_is_deterministic_and_jitter_is_small() -> None:
    scene = Scene("cross", "white", "large", "purple")
    assert scenes.draw(scene).tobytes() == scenes.draw(scene).tobytes()
    moved = scenes.draw(scene, random.Random(3))
    assert moved.tobytes() != scenes.draw(scene).tobytes()
    assert scenes.read(moved).place == "centre"
