"""What is refused, and how that is said."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from PIL import Image
from sdapi import PROMPT, SIZE, encoded, picture, post
from starlette.testclient import TestClient

from sdfast.service import Service
from sdfast.service.http.app import app


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"script_name": "x/y plot"}, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "f.pt"}]}}}, "ADetailer"),
        ({"override_settings": {"outdir_samples": "/tmp"}}, "outdir_samples"),
        ({"override_settings": {"sd_vae": "../../x.pt"}}, "sd_vae"),
        ({"infotext": "a, Steps: 3"}, "infotext"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"tiling": True}, "tiling"),
        ({"refiner_checkpoint": "../x"}, "refiner_checkpoint"),
        ({"sampler_name": "Eular"}, "did you mean 'euler'"),
        ({"scheduler": "Karas"}, "did you mean 'karras'"),
        ({"override_settings": {"sd_vae": {"a": [1]}}}, "sd_vae"),
        ({"seed": -2}, "seed is -2"),
        ({"seed": 2**64}, "seed is"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"n_iter": 10**6}, "n_iter is 1000000"),
        ({"batch_size": 3, "n_iter": 2}, "up to 4"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10**6}, "steps is 1000000"),
        ({"width": 65}, "multiple of 32"),
        ({"cfg_scale": 1e30}, "guidance is 1e+30"),
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "Latent, Lanczos, None"),
        ({"enable_hr": True, "hr_resize_x": 96, "hr_resize_y": 64}, "hr_resize_x"),
        ({"enable_hr": True, "denoising_strength": 2}, "denoising_strength is 2"),
        ({"prompt": "<lora:../../etc/passwd:1>"}, "LoRA"),
        ({"prompt": "<lora:a:1> x", "disable_extra_networks": True}, "disable_extra_networks"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 13}}, "CLIP_stop_at_last_layers"),
    ],
)
def test_what_would_draw_another_picture_is_refused(
    client: httpx.Client, fields: dict[str, Any], said: str
) -> None:
    response = post(client, "txt2img", **{"prompt": PROMPT, **SIZE, **fields})
    assert response.status_code == 400, response.text
    body = response.json()
    assert set(body) == {"error", "detail", "body", "errors"}
    assert said in body["detail"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"init_images": []}, "init_images has 0 pictures"),
        ({"init_images": ["", ""]}, "init_images has 2 pictures"),
        ({"init_images": ["/etc/passwd"]}, "init_images"),
        ({"init_images": ["file:///etc/passwd"]}, "init_images"),
        ({"inpainting_fill": 2, "mask": "AAAA"}, "inpainting_fill is 2"),
        ({"resize_mode": 4}, "resize_mode is 4"),
        ({"denoising_strength": 1.5}, "denoising_strength is 1.5"),
        ({"mask": "AAAA"}, "mask is no picture"),
        ({"mask": encoded(Image.new("L", (64, 64)))}, "the mask is black everywhere"),
    ],
)
def test_what_is_wrong_with_a_picture_is_said(
    client: httpx.Client, fields: dict[str, Any], said: str
) -> None:
    sent = {"prompt": PROMPT, **SIZE, "init_images": [encoded(picture())], **fields}
    response = post(client, "img2img", **sent)
    assert response.status_code == 400, response.text
    assert said in response.json()["detail"]


@pytest.mark.parametrize(
    "fields", [{"steps": "20"}, {"steps": True}, {"width": 64.5}, {"seed": "x"}]
)
def test_wrong_types_are_named(client: httpx.Client, fields: dict[str, Any]) -> None:
    response = post(client, "txt2img", **{"prompt": PROMPT, **SIZE, **fields})
    assert response.status_code == 422
    assert next(iter(fields)) in response.json()["detail"]


def test_unknown_models_are_not_found(client: httpx.Client) -> None:
    for name in ("../../etc/passwd", "demos", "C:\\x\0"):
        settings = {"sd_model_checkpoint": name}
        response = post(client, "txt2img", prompt=PROMPT, **SIZE, override_settings=settings)
        assert response.status_code == 404
        assert response.json()["error"] == "model_not_found"


def test_unknown_fields_are_named_in_the_header_whatever_they_are_called(
    client: httpx.Client,
) -> None:
    response = post(client, "txt2img", prompt=PROMPT, **SIZE, foo=1, **{"a\r\nb: c": 1})
    assert response.headers["x-sdfast-ignored"] == "foo, 1 more"


def test_what_is_no_text_is_refused_or_passed_over(client: httpx.Client) -> None:
    for fields, status in (
        ({"prompt": "\ud800"}, 400),
        ({"sampler_name": "\ud800"}, 400),
        ({"styles": ["\ud800"], "force_task_id": "\ud800"}, 200),
        ({"comments": {"a": float("nan")}, "script_args": [float("nan")]}, 200),
        ({"steps": "\ud800"}, 422),
        ({"eta": float("nan")}, 422),
        ({"cfg_scale": float("inf")}, 422),
    ):
        sent = json.dumps({"prompt": PROMPT, **SIZE, **fields})
        response = client.post(
            "/sdapi/v1/txt2img", content=sent, headers={"content-type": "application/json"}
        )
        assert response.status_code == status, response.text
        assert status != 422 or next(iter(fields)) in response.json()["detail"]


def test_a_service_that_has_not_started_is_asked_later() -> None:
    client = TestClient(app(Service()), "http://127.0.0.1")
    response = client.post("/sdapi/v1/txt2img", json={"prompt": PROMPT})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["error"] == "unavailable"
