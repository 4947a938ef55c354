"""What tests send to A1111's routes and make of what comes."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
from PIL import Image

PROMPT = "a small red circle on a white background"
SIZE: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "cfg_scale": 3.0}


def picture(width: int = 64, height: int = 64) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def post(client: httpx.Client, route: str, **fields: Any) -> httpx.Response:
    return client.post(f"/sdapi/v1/{route}", json=fields)


def drawn(client: httpx.Client, route: str = "txt2img", **fields: Any) -> dict[str, Any]:
    response = post(client, route, **{"prompt": PROMPT, **SIZE, **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))
