from __future__ import annotations

import httpx

from sdfast import samplers
from sdfast.bundle import Defaults, Sizes
from sdfast.service.http import options


def test_it_says_what_the_service_takes(client: httpx.Client) -> None:
    found = client.get("/v1/options").json()
    (model,) = found["models"]
    assert {one["name"] for one in found["samplers"]} == set(samplers.names())
    assert found["limits"]["count"] == 4
    usual = next(one for one in model["presets"] if one.pop("name") == "Usual")
    for size in model["sizes"]["usual"]:
        sides = {"width": size["width"], "height": size["height"]}
        asked = {"prompt": "a ring", **usual, **sides, "steps": 1}
        assert client.post("/v1/generate", json=asked).status_code == 200


def test_sizes_are_those_nearest_to_a_ratio_that_the_model_draws() -> None:
    usual = options.usual_sizes(Sizes(1024, 1024, 512, 2048, 64, 4, 8), 1024 * 1024)
    assert [(one.ratio, one.width, one.height) for one in usual] == [
        ("1:1", 1024, 1024),
        ("4:3", 1152, 896),
        ("3:4", 896, 1152),
        ("16:9", 1344, 768),
        ("9:16", 768, 1344),
    ]


def test_the_size_is_within_the_limit_of_pixels() -> None:
    found = options.sizes(Sizes(1024, 1024, 512, 2048, 64, 4, 8), 640 * 640)
    assert (found.width, found.height, found.pixels) == (640, 640, 640 * 640)
    none = options.sizes(Sizes(1024, 1024, 512, 2048, 64, 4, 8), 100)
    assert (none.width, none.usual) == (1024, [])


def test_presets_stay_within_the_limit_of_steps() -> None:
    found = options.presets(Defaults("lcm", "sgm_uniform", 4, 1.0), 6)
    assert [(one.name, one.steps, one.sampler) for one in found] == [
        ("Quick", 2, "lcm"),
        ("Usual", 4, "lcm"),
        ("Fine", 6, "lcm"),
    ]
