"""What pictures say of themselves."""

from __future__ import annotations

import time

import httpx
import webuiapi
from sdapi import PROMPT, SIZE, encoded, picture, post

from sdfast import infotext


def test_webuiapi_reads_what_a_picture_says(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(prompt=PROMPT, negative_prompt="stripes", seed=3, **SIZE)
    told = api.png_info(result.image)
    assert told.info == result.info["infotexts"][0]
    assert told.parameters["Prompt"] == PROMPT
    assert told.parameters["Negative prompt"] == "stripes"
    assert told.parameters["Seed"] == "3"
    assert told.parameters["Sampler"] == "Euler a"
    assert infotext.read(told.info).parameters["width"] == 64


def test_a_picture_without_text_says_nothing(client: httpx.Client) -> None:
    found = post(client, "png-info", image=encoded(picture())).json()
    assert found == {"info": "", "items": {}, "parameters": {}}
    assert post(client, "png-info", image="AAAA").status_code == 400


def test_no_text_of_a_picture_takes_long_to_read() -> None:
    for text in ("a" * 60_000, "a:" + " " * 60_000, 'a:"' * 20_000, 'a:\\"' * 15_000):
        begun = time.monotonic()
        infotext.words(f"prompt\n{text}")
        assert time.monotonic() - begun < 1.0
