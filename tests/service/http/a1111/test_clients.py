"""webuiapi as it is, and what other clients of A1111 were seen to send."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image
from sdapi import PROMPT, SIZE, decoded, drawn, picture, post, same

from sdfast.service.http.settings import Settings


def test_webuiapi_draws_the_picture_that_the_pipeline_draws(
    api: webuiapi.WebUIApi, demo: Any
) -> None:
    result = api.txt2img(prompt=PROMPT, seed=3, **SIZE)
    alone = demo(PROMPT, seed=3, steps=2, guidance=3.0, width=64, height=64, sampler="Euler a")
    assert same(result.image, alone.images[0])
    assert result.info["seed"] == 3
    assert result.info["sampler_name"] == "Euler a"
    assert result.parameters["prompt"] == PROMPT


def test_webuiapi_draws_from_a_picture(api: webuiapi.WebUIApi, demo: Any) -> None:
    given = picture()
    result = api.img2img(
        images=[given], prompt=PROMPT, seed=3, sampler_name="Euler", denoising_strength=0.5, **SIZE
    )
    alone = demo(
        PROMPT, seed=3, steps=2, guidance=3.0, image=given, strength=0.5, sampler="euler",
        schedule="normal",
    )  # fmt: skip
    assert same(result.image, alone.images[0])


def test_webuiapi_redraws_a_masked_part_and_keeps_the_rest(api: webuiapi.WebUIApi) -> None:
    given, mask = picture(), Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    result = api.img2img(
        images=[given], mask_image=mask, mask_blur=0, prompt=PROMPT, seed=3, **SIZE
    )
    before, after = np.asarray(given), np.asarray(result.image)
    outside = np.asarray(mask) == 0
    assert np.array_equal(before[outside], after[outside])
    assert not np.array_equal(before, after)


def test_webuiapi_enlarges_in_a_second_pass(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(prompt=PROMPT, seed=3, enable_hr=True, hr_scale=1.5, **SIZE)
    assert result.image.size == (96, 96)
    assert (result.info["width"], result.info["height"]) == (96, 96)


def test_webuiapi_interrupts_its_request(api: webuiapi.WebUIApi, serving: Any) -> None:
    failed: list[RuntimeError] = []

    def long() -> None:
        with pytest.raises(RuntimeError) as told:
            api.txt2img(prompt=PROMPT, **{**SIZE, "steps": 200})
        failed.append(told.value)

    drawing = threading.Thread(target=long)
    drawing.start()
    other = webuiapi.WebUIApi(baseurl=api.baseurl)
    seen = watched(other)
    assert other.interrupt() == {}
    drawing.join(20)
    assert failed[0].args[0] == 499
    assert json.loads(failed[0].args[1])["error"] == "cancelled"
    assert 0 < seen["progress"] < 1
    assert seen["state"]["sampling_steps"] == 200
    assert seen["state"]["job_count"] == 1
    assert decoded(seen["current_image"]).format == "PNG"
    serving.settled()
    idle = other.get_progress()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)


def watched(api: webuiapi.WebUIApi) -> dict[str, Any]:
    """The progress as soon as there is a preview."""
    for _ in range(1000):
        found: dict[str, Any] = api.get_progress()
        if found["current_image"]:
            return found
        time.sleep(0.01)
    raise AssertionError("no preview came")


def test_skip_stops_the_oldest_and_the_next_is_drawn(client: httpx.Client, serving: Any) -> None:
    statuses: dict[str, int] = {}

    def ask(name: str, steps: int) -> None:
        fields = {**SIZE, "prompt": PROMPT, "steps": steps}
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            statuses[name] = own.post("/sdapi/v1/txt2img", json=fields).status_code

    serving.settled()
    first = threading.Thread(target=ask, args=("first", 200))
    first.start()
    while client.get("/sdapi/v1/progress").json()["state"]["sampling_step"] == 0:
        time.sleep(0.01)
    second = threading.Thread(target=ask, args=("second", 30))
    second.start()
    while client.get("/sdapi/v1/progress").json()["state"]["job_count"] < 2:
        time.sleep(0.01)
    assert post(client, "skip").json() == {}
    first.join(20)
    second.join(20)
    assert statuses == {"first": 499, "second": 200}


@pytest.mark.parametrize("authorization", ["Basic", "Basic dXNlcjo=", "Basic ???", "Basic AA=="])
def test_open_webui_reads_options_sends_all_of_them_back_and_draws(
    client: httpx.Client, authorization: str
) -> None:
    """Its header says Basic even where no user is set."""
    basic = {"authorization": authorization}
    options = client.get("/sdapi/v1/options", headers=basic).json()
    models = client.get("/sdapi/v1/sd-models", headers=basic).json()
    assert options["sd_model_checkpoint"] == models[0]["title"]
    options["sd_model_checkpoint"] = models[0]["model_name"]
    assert client.post("/sdapi/v1/options", json=options, headers=basic).status_code == 200
    sent = {"prompt": PROMPT, "batch_size": 2, "width": 64, "height": 64, "steps": 2}
    response = client.post("/sdapi/v1/txt2img", json=sent, headers=basic)
    assert [decoded(one).size for one in response.json()["images"]] == [(64, 64)] * 2
    assert isinstance(json.loads(response.json()["info"]), dict)


def test_sillytavern_looks_around_and_draws(client: httpx.Client) -> None:
    for route in ("samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-models"):
        assert client.get(f"/sdapi/v1/{route}").json()[0][
            "name" if "models" not in route else "title"
        ]
    for route in ("sd-vae", "sd-modules"):
        assert client.get(f"/sdapi/v1/{route}").json() == []
    response = post(
        client,
        "txt2img",
        url="http://127.0.0.1:7860",
        auth="user:secret",
        prompt=PROMPT,
        negative_prompt="stripes",
        sampler_name="DPM++ 2M",
        scheduler="karras",
        steps=2,
        cfg_scale=7,
        width=64,
        height=64,
        restore_faces=False,
        enable_hr=False,
        hr_upscaler="Latent",
        hr_scale=2,
        hr_additional_modules=[],
        denoising_strength=0.7,
        hr_second_pass_steps=0,
        override_settings={"CLIP_stop_at_last_layers": 1},
        override_settings_restore_afterwards=True,
        clip_skip=1,
        save_images=True,
        send_images=True,
        do_not_save_grid=False,
        do_not_save_samples=False,
    )
    assert response.status_code == 200, response.text
    ignored = set(response.headers["x-sdfast-ignored"].split(", "))
    assert ignored == {"url", "auth", "hr_additional_modules", "clip_skip", "save_images"}
    assert "secret" not in response.text
    assert json.loads(response.json()["info"])["steps"] == 2


def test_librechat_reads_info_as_json(client: httpx.Client) -> None:
    """It asks for 1024×1024, which the demo bundle does not draw."""
    sent = {"prompt": PROMPT, "negative_prompt": "stripes", "cfg_scale": 4.5, "steps": 22}
    refused = post(client, "txt2img", **sent, width=1024, height=1024)
    assert refused.status_code == 400
    assert "width is 1024; it must be a whole number from 64 to 512" in refused.json()["detail"]
    info = json.loads(drawn(client, **{**sent, "steps": 2})["info"])
    assert (info["width"], info["height"]) == (64, 64)
    line = info["infotexts"][0].split("\n").pop()
    assert f"Seed: {info['seed']}" in line


def test_keys_come_as_the_password_of_basic_and_nobody_stops_anothers_request(
    serving: Any,
) -> None:
    url = serving.over(Settings(api_keys=("ours", "theirs")))
    with httpx.Client(base_url=url, timeout=30) as client:
        nobody = client.get("/sdapi/v1/progress", headers={"authorization": "Basic"})
        assert nobody.status_code == 401
        assert set(nobody.json()) == {"error", "detail", "body", "errors"}
    ours = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", username="any", password="ours")
    theirs = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", username="any", password="theirs")
    found: list[Any] = []
    drawing = threading.Thread(
        target=lambda: found.append(ours.txt2img(prompt=PROMPT, seed=3, **{**SIZE, "steps": 60}))
    )
    drawing.start()
    watched(ours)
    assert theirs.get_progress()["state"]["job_count"] == 0
    assert theirs.interrupt() == theirs.skip() == {}
    drawing.join(30)
    assert found[0].image.size == (64, 64)


def test_a_client_that_goes_stops_its_request(client: httpx.Client, url: str, serving: Any) -> None:
    def cancelled() -> float:
        found = re.search(
            r'sdfast_requests_total{outcome="cancelled"} (.*)', client.get("/metrics").text
        )
        return float(found[1]) if found else 0.0

    before = cancelled()
    fields = {"prompt": PROMPT, **SIZE, "steps": 200}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/sdapi/v1/txt2img", json=fields, timeout=0.2)
    serving.settled()
    assert cancelled() == before + 1
