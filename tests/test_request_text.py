"""Parameters of requests as text."""

from __future__ import annotations

from typing import Any

import pytest

from sdfast import request_text
from sdfast.errors import InvalidRequest

MAP = {"bundle": "demo-control", "image": "map.png"}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("demo-control=map.png", [MAP]),
        ("demo-control=map.png weight=0.8  end=1", [{**MAP, "weight": 0.8, "end": 1}]),
        ("demo-control=my map 2.png weight=1", [{**MAP, "image": "my map 2.png", "weight": 1}]),
        ("demo-control=map.png ; demo-control=b.png", [MAP, {**MAP, "image": "b.png"}]),
    ],
)
def test_controls_have_a_bundle_a_path_and_values_by_name(
    text: str, read: list[dict[str, Any]]
) -> None:
    assert request_text.read("control", text) == read


@pytest.mark.parametrize("text", ["demo-control", "=map.png", "demo-control=", "demo-control= "])
def test_a_control_without_bundle_or_map_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="it must be BUNDLE=MAP"):
        request_text.read("control", text)
