"""A1111's dialect, by webuiapi as it is and by what other clients were seen to send."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image
from starlette.testclient import TestClient

from sdfast import Request, __version__, infotext
from sdfast.service import Service
from sdfast.service.http.a1111.fields import Img2Img, Txt2Img
from sdfast.service.http.app import app
from sdfast.service.http.settings import Settings

PROMPT = "a small red circle on a white background"
SIZE: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "cfg_scale": 3.0}


@pytest.fixture
def api(url: str) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1")


@pytest.fixture
def asked(serving: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Request, Any]]]:
    """The requests that the service was given, and for which model; it draws them as ever."""
    found: list[tuple[Request, Any]] = []
    submit = serving.service.submit

    async def seen(request: Request, **more: Any) -> Any:
        found.append((request, more.get("model")))
        return await submit(request, **more)

    monkeypatch.setattr(serving.service, "submit", seen)
    return found


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


# webuiapi, unchanged


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


def test_webuiapi_lists_what_there_is(api: webuiapi.WebUIApi) -> None:
    assert {"Euler a", "DPM++ 2M", "DDIM"} <= set(api.util_get_sampler_names())
    assert {"automatic", "karras"} <= set(api.util_get_scheduler_names())
    (title,) = api.util_get_model_names()
    assert title.startswith("demo [")
    assert api.util_get_current_model() == title
    assert api.get_upscalers()[0]["name"]
    assert api.get_latent_upscale_modes() == [{"name": "Latent"}]
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_memory()["ram"]["used"] > 1 << 20
    assert api.get_loras() == api.get_sd_vae() == api.get_hypernetworks() == []
    assert api.get_face_restorers() == api.get_prompt_styles() == []
    assert api.get_cmd_flags() == {}
    api.refresh_checkpoints()


def test_webuiapi_sets_the_model_and_waits_until_nothing_is_drawn(
    api: webuiapi.WebUIApi, serving: Any
) -> None:
    serving.settled()
    api.util_set_model("demo")
    api.util_wait_for_ready(check_interval=0.05)
    assert api.get_progress()["state"]["job_count"] == 0


def test_webuiapi_reads_what_a_picture_says(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(prompt=PROMPT, negative_prompt="stripes", seed=3, **SIZE)
    told = api.png_info(result.image)
    assert told.info == result.info["infotexts"][0]
    assert told.parameters["Prompt"] == PROMPT
    assert told.parameters["Negative prompt"] == "stripes"
    assert told.parameters["Seed"] == "3"
    assert told.parameters["Sampler"] == "Euler a"
    assert infotext.read(told.info).parameters["width"] == 64


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


# what others send


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


# fields


def test_seeds_count_up_over_batches_and_each_draws_its_picture_again(client: httpx.Client) -> None:
    found = drawn(client, seed=7, batch_size=2, n_iter=2)
    info = json.loads(found["info"])
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert len(info["infotexts"]) == len(info["all_prompts"]) == 4
    again = drawn(client, seed=9)
    assert same(decoded(again["images"][0]), decoded(found["images"][2]))


@pytest.mark.parametrize("seed", [-1, None])
def test_a_random_seed_is_told(client: httpx.Client, seed: int | None) -> None:
    first, second = (json.loads(drawn(client, seed=seed)["info"])["seed"] for _ in range(2))
    assert first != second
    assert 0 <= first < 2**64


@pytest.mark.parametrize(
    ("fields", "sampler", "schedule"),
    [
        ({"sampler_name": "Euler a"}, "euler_ancestral", "normal"),
        ({"sampler_name": "DPM++ 2M Karras"}, "dpmpp_2m", "karras"),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "automatic"}, "dpmpp_2m", "karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Automatic"}, "dpmpp_2m", "karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "SGM Uniform"}, "dpmpp_2m", "sgm_uniform"),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "Beta"}, "dpmpp_2m", "beta"),
        ({"sampler_index": "DDIM"}, "ddim", "ddim_uniform"),
        ({"sampler_name": "Euler", "sampler_index": "DDIM"}, "euler", "normal"),
        ({"sampler_name": "DPM++ 2M SDE Exponential"}, "dpmpp_2m_sde", "exponential"),
    ],
)
def test_samplers_and_schedules_by_a1111s_labels(
    client: httpx.Client, fields: dict[str, str], sampler: str, schedule: str
) -> None:
    info = json.loads(drawn(client, seed=1, **fields)["info"])
    found = infotext.read(info["infotexts"][0]).parameters
    assert (found["sampler"], found["schedule"]) == (sampler, schedule)


def test_what_is_left_open_is_the_bundles(
    client: httpx.Client, demo: Any, asked: list[tuple[Request, Any]]
) -> None:
    info = json.loads(post(client, "txt2img", prompt=PROMPT, width=64, height=64).json()["info"])
    assert (info["steps"], info["cfg_scale"]) == (
        demo.bundle.defaults.steps,
        demo.bundle.defaults.guidance,
    )
    assert asked[0][0].sampler is None


def test_the_solver_of_a_label_and_the_parameters_of_its_sampler_are_taken(
    client: httpx.Client, asked: list[tuple[Request, Any]]
) -> None:
    response = post(
        client, "txt2img", prompt=PROMPT, **SIZE, sampler_name="DPM++ 2M SDE Heun Karras",
        eta=0.5, s_noise=1.0, s_churn=2.0, s_tmax=0,
    )  # fmt: skip
    assert response.status_code == 200, response.text
    assert asked[0][0].sampler_parameters == {"solver_type": "heun", "eta": 0.5, "s_noise": 1.0}
    assert asked[0][0].schedule == "karras"
    assert response.headers["x-sdfast-ignored"] == "s_churn"


def test_clip_skip_is_one_less_and_the_model_goes_by_its_title(
    client: httpx.Client, asked: list[tuple[Request, Any]]
) -> None:
    title = client.get("/sdapi/v1/sd-models").json()[0]["title"]
    settings = {"sd_model_checkpoint": title, "CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic"}
    info = json.loads(drawn(client, seed=1, override_settings=settings)["info"])
    assert (asked[0][0].clip_skip, asked[0][1]) == (1, "demo")
    assert info["clip_skip"] == 2


def test_a_second_pass_takes_all_of_its_steps(
    client: httpx.Client, asked: list[tuple[Request, Any]]
) -> None:
    fields = {"enable_hr": True, "hr_upscaler": "Lanczos", "hr_resize_x": 96, "hr_resize_y": 96}
    found = drawn(
        client, **fields, denoising_strength=0.5, hr_second_pass_steps=3, hr_sampler_name="DDIM",
        hr_prompt="a large red circle",
    )  # fmt: skip
    assert decoded(found["images"][0]).size == (96, 96)
    assert asked[0][0].hires == {
        "scale": 1.5, "resize": "stretch", "denoise": 0.5, "steps": 3, "sampler": "ddim",
        "schedule": "ddim_uniform", "prompt": "a large red circle",
    }  # fmt: skip


def test_masks_are_white_where_redrawn_or_opaque_and_may_be_inverted(
    client: httpx.Client, asked: list[tuple[Request, Any]]
) -> None:
    white, clear = Image.new("L", (64, 64)), Image.new("RGBA", (64, 64))
    white.paste(255, (0, 0, 32, 64))
    clear.paste((0, 0, 0, 255), (0, 0, 32, 64))
    other = Image.eval(white, lambda v: 255 - v)
    for mask, invert in ((white, 0), (clear, 0), (other, 1), (other, True)):
        drawn(
            client, "img2img", init_images=[encoded(picture())], mask=encoded(mask),
            inpainting_mask_invert=invert, inpainting_fill=1, mask_blur=2,
            inpaint_full_res=True, inpaint_full_res_padding=8,
        )  # fmt: skip
    for request, _ in asked:
        assert same(request.mask, white)
        assert (request.mask_blur, request.mask_margin) == (2, 8)
        assert same(request.image, picture())


def test_a_filled_mask_has_the_colours_from_around_it(
    client: httpx.Client, asked: list[tuple[Request, Any]]
) -> None:
    given = Image.new("RGB", (64, 64), (200, 40, 40))
    given.paste((0, 255, 0), (20, 20, 40, 40))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    drawn(client, "img2img", init_images=[encoded(given)], mask=encoded(mask), inpainting_fill=0)
    under = np.asarray(asked[0][0].image)
    # Averages of pixels that are mostly transparent are rounded to eight bits each time.
    assert np.abs(under.astype(int) - (200, 40, 40)).max() <= 8


@pytest.mark.parametrize(("mode", "resize"), enumerate(("stretch", "crop", "pad", "latent")))
def test_pictures_of_another_size_are_fitted_by_resize_mode(
    client: httpx.Client, asked: list[tuple[Request, Any]], mode: int, resize: str
) -> None:
    found = drawn(client, "img2img", init_images=[encoded(picture(96, 64))], resize_mode=mode)
    assert decoded(found["images"][0]).size == (64, 64)
    assert asked[0][0].resize == resize
    assert asked[0][0].strength == 0.75


def test_images_may_be_left_out(client: httpx.Client) -> None:
    found = drawn(client, seed=4, send_images=False)
    assert found["images"] == []
    assert json.loads(found["info"])["seed"] == 4


def test_pictures_carry_a1111s_text_and_sdfasts(client: httpx.Client) -> None:
    found = drawn(client, seed=4, batch_size=2)
    texts = [decoded(one).info for one in found["images"]]
    assert [t["parameters"] for t in texts] == json.loads(found["info"])["infotexts"]
    assert json.loads(texts[1]["sdfast"])["request"]["seed"] == 5
    assert __version__ in texts[0]["parameters"]


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


def test_options_are_read_only(client: httpx.Client) -> None:
    options = client.get("/sdapi/v1/options").json()
    assert client.post("/sdapi/v1/options", json=options).status_code == 200
    for changed in ({"CLIP_stop_at_last_layers": 2}, {"samples_format": "jpg"}, {"outdir": "/x"}):
        response = client.post("/sdapi/v1/options", json={**options, **changed})
        assert response.status_code == 400
        assert next(iter(changed)) in response.json()["detail"]
    assert client.get("/sdapi/v1/options").json() == options


def test_nothing_names_a_folder(client: httpx.Client) -> None:
    routes = ("samplers", "sd-models", "upscalers", "loras", "options", "cmd-flags", "memory")
    for route in routes:
        text = client.get(f"/sdapi/v1/{route}").text
        assert "/" not in text.replace("GET /metrics", ""), route


def test_a_picture_without_text_says_nothing(client: httpx.Client) -> None:
    found = post(client, "png-info", image=encoded(picture())).json()
    assert found == {"info": "", "items": {}, "parameters": {}}
    assert post(client, "png-info", image="AAAA").status_code == 400


# whose requests are whose


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


def test_each_caller_has_a_model_of_their_own(copied: Path) -> None:
    manifest = copied / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"name": "demo"', '"name": "other"', 1))
    app_of_two = app(Service(["demo", copied]), Settings(api_keys=("ours", "theirs")))
    ours, theirs = (
        TestClient(app_of_two, "http://127.0.0.1", headers={"authorization": f"Bearer {key}"})
        for key in ("ours", "theirs")
    )
    first, second = (model["title"] for model in ours.get("/sdapi/v1/sd-models").json())
    assert ours.post("/sdapi/v1/options", json={"sd_model_checkpoint": second}).is_success
    models = [one.get("/sdapi/v1/options").json()["sd_model_checkpoint"] for one in (ours, theirs)]
    assert models == [second, first]


def test_lora_are_listed_where_prompts_may_name_them(tmp_path: Path) -> None:
    (tmp_path / "ink.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    for service, names in (
        (Service(lora_dir=tmp_path), ["ink"]),
        (Service(), []),
    ):
        client = TestClient(app(service), "http://127.0.0.1")
        found = client.get("/sdapi/v1/loras").json()
        assert [one["name"] for one in found] == names
        assert str(tmp_path) not in str(found)


def test_the_guide_says_what_becomes_of_each_field() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "a1111.md").read_text(encoding="utf-8")
    assert not [
        name
        for name in {**Txt2Img.model_fields, **Img2Img.model_fields}
        if f"`{name}`" not in guide
    ]


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


def test_a_service_that_has_not_started_is_asked_later() -> None:
    client = TestClient(app(Service()), "http://127.0.0.1")
    response = client.post("/sdapi/v1/txt2img", json={"prompt": PROMPT})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["error"] == "unavailable"


def test_no_text_of_a_picture_takes_long_to_read() -> None:
    for text in ("a" * 60_000, "a:" + " " * 60_000, 'a:"' * 20_000, 'a:\\"' * 15_000):
        begun = time.monotonic()
        infotext.words(f"prompt\n{text}")
        assert time.monotonic() - begun < 1.0
