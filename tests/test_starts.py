"""What requests that bring a picture resolve to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from sdfast import store
from sdfast.errors import InvalidRequest
from sdfast.request import Request, Resolved, resolve

DEMO = store.load("demo")
PICTURE = Image.new("RGB", (160, 128), "red")
WHITE = Image.new("L", (160, 128), 255)


def resolved(**given: Any) -> Resolved:
    return resolve(Request("a star", **given), DEMO)


@pytest.mark.parametrize(
    ("strength", "steps", "taken"),
    [(0.6, 20, 12), (1.0, 20, 20), (0.29, 100, 28), (0.01, 20, 1), (0.0, 20, 0), (0.5, 1, 1)],
)
def test_strength_is_the_part_of_the_steps_that_is_taken(
    strength: float, steps: int, taken: int
) -> None:
    """As by diffusers (0.29 · 100 is 28.999… there too), but never none where it is above 0."""
    whole, part = resolved(steps=steps), resolved(steps=steps, image=PICTURE, strength=strength)
    assert part.sigmas == whole.sigmas[len(whole.sigmas) - 1 - taken :]
    assert part.from_picture == (strength < 1)


def test_denoise_takes_all_steps_of_a_longer_run() -> None:
    part = resolved(steps=10, image=PICTURE, denoise=0.5)
    assert part.sigmas == resolved(steps=20).sigmas[-11:]
    assert part.from_picture
    assert not resolved(steps=10, image=PICTURE, denoise=1).from_picture
    assert len(resolved(steps=10, image=PICTURE, denoise=0).sigmas) == 1


def test_own_sigmas_say_where_the_run_starts() -> None:
    part = resolved(image=PICTURE, sigmas=(3.0, 1.0, 0.0))
    assert part.sigmas == (3.0, 1.0, 0.0)
    assert part.from_picture


def test_the_usual_strength_is_of_what_is_redrawn() -> None:
    assert resolved(image=PICTURE).strength == 0.6
    assert resolved(image=PICTURE, mask=WHITE).strength == 1
    assert resolved(image=PICTURE, outpaint=(0, 0, 32, 0)).strength == 1


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((160, 128), (160, 128)),
        ((150, 100), (160, 96)),
        ((4000, 3000), (512, 384)),
        ((30, 20), (96, 64)),
        ((3000, 30), (512, 64)),
    ],
)
def test_the_usual_size_is_the_pictures_own(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    found = resolved(image=Image.new("RGB", size))
    assert (found.width, found.height) == drawn
    asked = resolved(image=Image.new("RGB", size), width=256, height=64)
    assert (asked.width, asked.height) == (256, 64)


def test_the_part_around_a_mask_is_drawn_at_the_models_size() -> None:
    found = resolved(image=PICTURE, mask=WHITE, mask_margin=8)
    assert (found.width, found.height) == (128, 128)


def test_a_second_pass_differs_in_what_it_is_told() -> None:
    found = resolved(
        steps=10,
        seed=3,
        hires={"scale": 1.5, "steps": 8, "sampler": "euler", "prompt": "a blue star"},
    )
    second = found.second
    assert second is not None
    assert (second.width, second.height) == (192, 192)
    assert (second.prompt, second.sampler, second.seed) == ("a blue star", "euler", 3)
    assert len(second.sigmas) - 1 == 4  # half of its steps
    assert second.from_picture
    assert found.as_request().to_dict()["hires"]["scale"] == 1.5


def test_a_second_pass_after_sigmas_is_of_the_bundles_schedule() -> None:
    found = resolved(sigmas=(14.0, 3.0, 0.5, 0.0), hires={"scale": 1.5, "steps": 6})
    assert found.second is not None
    assert found.second.schedule == DEMO.defaults.schedule
    assert len(found.second.sigmas) - 1 == 3


def test_a_request_with_a_picture_goes_to_json_and_back() -> None:
    request = Request("a star", image="a.png", outpaint=(1, 2, 3, 4), hires={"scale": 2})
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    assert hash(request) == hash(Request("a star", image="b.png", outpaint=(1, 2, 3, 4)))
    full = resolved(image=PICTURE, seed=1).as_request()
    assert resolve(full, DEMO).as_request() == full
    assert json.dumps(full.to_dict())


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"strength": 0.5}, "strength is about an image"),
        ({"resize": "corp"}, "did you mean 'crop'"),
        ({"mask_blur": 4}, "mask_blur is about a mask"),
        ({"image": PICTURE, "mask_blur": 4}, "mask_blur is about a mask"),
        ({"mask": WHITE}, "mask is about an image"),
        ({"image": PICTURE, "strength": 1.5}, "strength is 1.5; it must be a number from 0 to 1"),
        ({"image": PICTURE, "strength": 0.5, "denoise": 0.5}, "leave one of them out"),
        ({"image": PICTURE, "strength": 0.5, "sigmas": (1.0, 0.0)}, "leave one of them out"),
        ({"image": PICTURE, "denoise": 0.01}, "the model has 1000 noise levels"),
        ({"image": PICTURE, "resize": "corp"}, "did you mean 'crop'"),
        ({"image": PICTURE, "mask_margin": 3}, "mask_margin is about a mask"),
        ({"image": PICTURE, "mask": WHITE, "mask_blur": -1}, "mask_blur"),
        ({"image": PICTURE, "outpaint": (1, 2)}, "on the left, top, right and bottom"),
        ({"image": PICTURE, "outpaint": (0, 0, 0, 0)}, "0 on every side"),
        ({"image": PICTURE, "outpaint": (1, 0, 0, 0)}, "width is 161; it must be a multiple of 32"),
        ({"hires": 2}, "hires is 2; it must be values by name"),
        ({"hires": {"scael": 2}}, "hires has 'scael'"),
        ({"hires": {"scale": 9}}, "hires scale"),
        ({"width": 640}, "width is 640; it must be a whole number from 64 to 512"),
        (
            {"image": PICTURE, "width": 9000},
            "width is 9000; it must be a whole number from 64 to 8192",
        ),
        ({"image": PICTURE, "width": 640, "cache": 2}, "drawn in tiles, without control and cache"),
        ({"hires": {"steps": 0}}, "steps is 0"),
        ({"hires": {}, "image": PICTURE, "mask": WHITE}, "hires draws the whole picture"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        resolved(**given)
