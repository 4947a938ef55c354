"""What becomes of A1111's fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sdapi import PROMPT, SIZE, decoded, drawn, encoded, picture, post, same

from sdfast import Request, __version__, infotext
from sdfast.service.http.a1111.fields import Img2Img, Txt2Img


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


def test_the_guide_says_what_becomes_of_each_field() -> None:
    guide = (Path(__file__).parents[4] / "docs" / "a1111.md").read_text(encoding="utf-8")
    assert not [
        name
        for name in {**Txt2Img.model_fields, **Img2Img.model_fields}
        if f"`{name}`" not in guide
    ]
