"""What clients read before they draw, and may set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import webuiapi
from starlette.testclient import TestClient

from sdfast.service import Service
from sdfast.service.http.app import app
from sdfast.service.http.settings import Settings


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
