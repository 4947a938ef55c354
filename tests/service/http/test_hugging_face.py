"""Hugging Face's Inference client, as it is."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

PROMPT = "a small red circle on a white background"


def test_the_inference_client_draws_the_picture_that_the_pipeline_draws(
    url: str, demo: Any
) -> None:
    drawn = InferenceClient(model=f"{url}/models/demo").text_to_image(
        PROMPT,
        negative_prompt="stripes",
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=3.0,
        scheduler="EulerAncestralDiscreteScheduler",
        seed=3,
    )
    alone = demo(
        PROMPT, negative_prompt="stripes", seed=3, steps=2, guidance=3.0, width=64, height=64,
        sampler="euler_ancestral",
    )  # fmt: skip
    assert np.array_equal(np.asarray(drawn), np.asarray(alone.images[0]))


def test_the_root_is_an_endpoint_of_the_first_model(url: str) -> None:
    drawn = InferenceClient(model=url).text_to_image(PROMPT, width=64, height=64)
    assert drawn.size == (64, 64)


def test_the_inference_client_is_told_what_is_wrong(url: str) -> None:
    with pytest.raises(HfHubHTTPError, match="width is 65; it must be a multiple of 32"):
        InferenceClient(model=f"{url}/models/demo").text_to_image(PROMPT, width=65)
    with pytest.raises(HfHubHTTPError, match="there is no model 'deno'; did you mean 'demo'"):
        InferenceClient(model=f"{url}/models/deno").text_to_image(PROMPT)


@pytest.mark.parametrize(
    ("accept", "form"),
    [("image/jpeg", "JPEG"), ("image/webp", "WEBP"), ("image/png", "PNG"), ("*/*", "PNG")],
)
def test_the_picture_is_of_the_kind_that_is_accepted(
    client: httpx.Client, accept: str, form: str
) -> None:
    parameters = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 3}
    sent = {"inputs": PROMPT, "parameters": parameters, "options": {"wait_for_model": True}}
    response = client.post("/models/demo", json=sent, headers={"accept": accept})
    assert Image.open(io.BytesIO(response.content)).format == form
    assert response.headers["content-type"] == f"image/{form.lower()}"
    assert response.headers["x-sdfast-seed"] == "3"


@pytest.mark.parametrize(
    "parameters", [{"output_path": "/tmp/x"}, {"seed": "3"}, {"num_images_per_prompt": 2}]
)
def test_other_parameters_are_refused_by_name(
    client: httpx.Client, parameters: dict[str, Any]
) -> None:
    response = client.post("/models/demo", json={"inputs": PROMPT, "parameters": parameters})
    assert response.status_code == 400
    assert next(iter(parameters)) in response.text
