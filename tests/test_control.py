"""Controls of a request: what they are read as, and when they act."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sdfast import control, store
from sdfast.errors import InvalidRequest
from sdfast.request import Request, resolve

DEMO, CONTROL = store.load("demo"), store.load("demo-control")
MAP = Image.new("RGB", (128, 128))
SIZE = (128, 128)


def one(**given: Any) -> control.Control:
    (found,) = control.controls({"bundle": "demo-control", "image": MAP, **given}, SIZE, 2)
    return found


@pytest.mark.parametrize(
    ("given", "acting"),
    [
        ({}, [0, 1, 2, 3]),
        ({"end": 0.5}, [0, 1]),
        ({"start": 0.25, "end": 0.75}, [1, 2]),
        ({"start": 0.9}, []),
    ],
)
def test_it_acts_in_its_part_of_the_steps(given: dict[str, float], acting: list[int]) -> None:
    assert [step for step in range(4) if one(**given).acts(step, 4)] == acting


def test_weights_are_those_of_the_step_that_an_evaluation_belongs_to() -> None:
    at = control.weights([one(weight=0.5, end=0.5), one()], (10.0, 5.0, 2.0, 1.0, 0.0), float)
    assert at(10) == at(7.0) == [0.5, 1.0]  # 7: the middle of the first step
    assert at(5.0) == [0.5, 1.0]
    assert at(2.0) == at(0.5) == [0.0, 1.0]


def test_residuals_are_of_the_levels_of_the_unet() -> None:
    made = control.added(CONTROL, 2, (16, 8))
    assert [made[f"residual_{k}"].shape[2:] for k in range(6)] == [
        (16, 8),
        (16, 8),
        (8, 4),
        (8, 4),
        (4, 2),
        (4, 2),
    ]
    assert made["residual_mid"].shape == (2, 64, 4, 2)


def test_a_bundle_that_steers_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="demo is for task text; control takes one of task"):
        control.check(DEMO, DEMO)
    control.check(CONTROL, DEMO)


def test_what_the_unet_takes_is_named_by_place_and_level() -> None:
    taken = [name for name in control.absent(DEMO) if name.startswith("adapter_")]
    assert taken == ["adapter_0_1", "adapter_1_1", "adapter_2_2", "adapter_3_2"]


def test_a_map_is_scaled_without_new_colours() -> None:
    small = Image.new("RGB", (40, 30), (0, 0, 0))
    small.paste((255, 0, 0), (10, 10, 20, 20))
    colours = {colour for _, colour in one(image=small).pictures[0].getcolors() or []}
    assert colours == {(0, 0, 0), (255, 0, 0)}


def test_edges_of_a_picture_are_white_on_black() -> None:
    pytest.importorskip("cv2")
    picture = Image.new("RGB", SIZE, "blue")
    ImageDraw.Draw(picture).rectangle((40, 40, 90, 90), fill="yellow")
    edges = np.asarray(one(image=picture, preprocess="canny").pictures[0])
    assert set(edges.flat) == {0, 255}
    rows, columns, _ = np.nonzero(edges)
    assert {int(rows.min()), int(columns.min())} <= {38, 39, 40, 41}
    assert edges[60:70, 60:70].max() == 0


def test_a_request_with_control_goes_to_json_and_back() -> None:
    request = Request("a star", control=[{"bundle": "demo-control", "image": "map.png"}])
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))).control == (
        {"bundle": "demo-control", "image": "map.png"},
    )
    drawn = resolve(Request("a star", control={"bundle": "demo-control", "image": MAP}), DEMO)
    (told,) = json.loads(json.dumps(drawn.as_request().to_dict()))["control"]
    assert told["image"].startswith("sha256:")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (3, "control is 3; it must be one set of values, or several"),
        ([], "one set of values"),
        ({"image": MAP}, "control has no bundle"),
        ({"bundle": "x"}, "control has no image"),
        ({"bundle": "x", "image": MAP, "wieght": 1}, "did you mean 'weight'"),
        ({"bundle": "x", "image": MAP, "weight": 3}, "control's weight is 3"),
        ({"bundle": "x", "image": MAP, "start": 0.5, "end": 0.5}, "start before the end"),
        ({"bundle": "x", "image": MAP, "preprocess": "depth"}, "it must be one of canny"),
        ({"bundle": "x", "image": "nowhere.png"}, "control's image nowhere.png cannot be read"),
        ({"bundle": "x", "image": [MAP] * 3}, "one for all, or one for each of the 2"),
        ([{"bundle": "x", "image": MAP}] * 9, "there are 9 controls; 8 are allowed"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: Any, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        control.controls(given, SIZE, 2)


def test_its_bundle_may_be_a_path() -> None:
    folder = store.find("demo-control")
    assert one(bundle=folder).bundle == str(folder)
    request = Request("a star", control={"bundle": folder, "image": "map.png"})
    (told,) = json.loads(json.dumps(request.to_dict()))["control"]
    assert told == {"bundle": str(folder), "image": "map.png"}


@pytest.mark.parametrize("odd", ["abc", 5, [1]])
def test_what_is_no_control_is_told_as_it_is_and_refused(odd: Any) -> None:
    request = Request.from_dict(Request("a star", control=odd).to_dict())
    with pytest.raises(InvalidRequest, match="control is"):
        resolve(request, DEMO)


def test_control_is_of_every_evaluation() -> None:
    request = Request("a star", control={"bundle": "demo-control", "image": MAP}, cache=3)
    with pytest.raises(InvalidRequest, match="leave out cache"):
        resolve(request, DEMO)
