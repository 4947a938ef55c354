"""sdfast's own route: everything of a Request, and its progress."""

from __future__ import annotations

import httpx

ASKED = {"prompt": "a small red circle", "steps": 2, "seed": 7, "width": 64, "height": 64}


def test_a_request_brings_its_picture_and_itself(client: httpx.Client) -> None:
    answer = client.post("/v1/generate", json=ASKED)
    assert answer.status_code == 200, answer.text
    assert answer.json()["seeds"] == [7]
