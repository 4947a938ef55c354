from __future__ import annotations

import json
import math
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from sdfast import schedules, store
from sdfast.bundle import Bundle
from sdfast.errors import InvalidRequest, SdfastError, UnknownSampler, UnknownSchedule
from sdfast.request import MAX_SEED, Request, noise_schedule, resolve


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return store.load("demo")


def test_the_bundle_fills_what_is_left_open(demo: Bundle) -> None:
    found = resolve(Request("a red star"), demo)
    defaults = demo.defaults
    assert (found.sampler, found.schedule) == (defaults.sampler, defaults.schedule)
    assert (found.steps, found.guidance) == (defaults.steps, defaults.guidance)
    assert (found.width, found.height, found.count) == (128, 128, 1)
    assert 0 <= found.seed < 2**32


def test_steps_end_where_the_trained_levels_do(demo: Bundle) -> None:
    short = replace(demo.manifest, betas=replace(demo.manifest.betas, count=50))
    with pytest.raises(InvalidRequest, match="from 1 to 50"):
        resolve(Request("x", steps=51), replace(demo, manifest=short))


@pytest.mark.parametrize(
    ("precision", "given", "found"),
    [
        ("fp32", {}, {}),
        ("bf16", {}, {"delta": 0.1}),
        ("bf16", {"delta": 0.2, "eta": 0.5}, {"delta": 0.2, "eta": 0.5}),
        ("bf16", {"delta": 1e-3}, {"delta": 1e-3}),
        ("fp32", {"delta": 1e-3}, {}),
    ],
)
def test_differences_are_taken_farther_apart_where_the_network_rounds(
    demo: Bundle, precision: str, given: dict[str, float], found: dict[str, float]
) -> None:
    asked = Request("x", sampler="ttm", sampler_parameters=given)
    assert resolve(asked, demo, precision).sampler_parameters == found


def test_aliases_become_canonical_names(demo: Bundle) -> None:
    found = resolve(Request("x", sampler="DPM++ 2M", schedule="KARRAS"), demo)
    assert (found.sampler, found.schedule) == ("dpmpp_2m", "karras")


def test_image_k_has_seed_plus_k_and_the_last_seed_is_followed_by_the_first(
    demo: Bundle,
) -> None:
    assert resolve(Request("x", seed=5, count=3), demo).seeds == (5, 6, 7)
    assert resolve(Request("x", seed=MAX_SEED, count=2), demo).seeds == (MAX_SEED, 0)


def test_a_request_survives_json() -> None:
    request = Request("x", steps=3, guidance=2.5, guidance_interval=(0.3, 5.0), seed=2**63)
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_an_interval_of_whole_numbers_or_a_list_is_one_of_floats(demo: Bundle) -> None:
    for pair in ((1, 5), [1, 5]):
        found = resolve(Request("x", guidance_interval=pair), demo)  # type: ignore[arg-type]
        assert found.guidance_interval == (1.0, 5.0)
        assert isinstance(found.guidance_interval, tuple)


def test_parameters_and_sigmas_survive_json(demo: Bundle) -> None:
    request = Request(
        "x",
        sampler="pndm",
        sampler_parameters={"middles": (10.0, 5.0)},
        sigmas=(14.0, 7.0, 3.0, 1.0, 0.0),
    )
    full = resolve(request, demo).as_request()
    assert Request.from_dict(json.loads(json.dumps(full.to_dict()))) == full
    assert resolve(full, demo).as_request() == full
    assert (full.steps, full.schedule, full.sigmas) == (4, "custom", request.sigmas)
    assert hash(full) == hash(replace(full))


def test_the_run_visits_the_levels_of_the_schedule(demo: Bundle) -> None:
    ns = noise_schedule(demo.manifest.betas)
    found = resolve(Request("x", schedule="karras", steps=7), demo)
    assert found.sigmas == schedules.sigmas("karras", 7, ns)
    own = Request("x", schedule="karras", steps=7, schedule_parameters={"rho": 5.0})
    assert resolve(own, demo).sigmas == schedules.sigmas("karras", 7, ns, rho=5.0)


def test_a_label_with_a_schedule_brings_it(demo: Bundle) -> None:
    found = resolve(Request("x", sampler="DPM++ 2M SDE Exponential"), demo)
    assert (found.sampler, found.schedule) == ("dpmpp_2m_sde", "exponential")
    other = resolve(Request("x", sampler="DPM++ 2M Karras", schedule="normal"), demo)
    assert other.schedule == "normal"


def test_parameters_at_their_defaults_are_not_carried(demo: Bundle) -> None:
    given = {"eta": 0.5, "s_noise": 1.0}
    found = resolve(Request("x", sampler="euler_ancestral", sampler_parameters=given), demo)
    assert found.as_request().sampler_parameters == {"eta": 0.5}
    proxy = Request("x", sampler="ddim", sampler_parameters=MappingProxyType({"eta": 0.5}))
    assert resolve(proxy, demo).as_request().sampler_parameters == {"eta": 0.5}


def test_a_parameter_of_a_sampler_is_told_its_place() -> None:
    with pytest.raises(InvalidRequest, match="'eta': samplers' own go into sampler_parameters"):
        Request.from_dict({"prompt": "x", "eta": 0.5})


def test_where_a_sampler_wants_it_the_smallest_level_is_left_out(demo: Bundle) -> None:
    ns = noise_schedule(demo.manifest.betas)
    longer = schedules.sigmas("karras", 8, ns)
    found = resolve(Request("x", sampler="uni_pc", schedule="karras", steps=7), demo)
    assert found.sigmas == (*longer[:7], 0.0)
    for sampler, discard, kept in (("uni_pc", False, True), ("euler", True, False)):
        own = Request("x", sampler=sampler, schedule="karras", steps=7, discard_penultimate=discard)
        expected = schedules.sigmas("karras", 7, ns) if kept else (*longer[:7], 0.0)
        assert resolve(own, demo).sigmas == expected
    most = resolve(Request("x", sampler="uni_pc", schedule="normal", steps=1000), demo)
    assert len(most.sigmas) == 1001  # there is no longer schedule to leave one out of
    given = (5.0, 1.0, 0.1, 0.0)
    assert resolve(Request("x", sampler="uni_pc", sigmas=given), demo).sigmas == given


@pytest.mark.parametrize(
    ("values", "error", "word"),
    [
        ({"sampler_parameters": {"eta": 1}}, InvalidRequest, "has no parameter 'eta'"),
        ({"sampler_parameters": 3}, InvalidRequest, "values by name"),
        ({"sampler_parameters": {3: 3}}, InvalidRequest, "values by name"),
        ({"schedule_parameters": {"rho": "7"}}, InvalidRequest, "a number from"),
        ({"sampler": "lms", "sampler_parameters": {"order": 2.5}}, InvalidRequest, "whole"),
        ({"sigmas": 3}, InvalidRequest, "list of numbers"),
        ({"sigmas": ()}, InvalidRequest, "two sigmas"),
        ({"sigmas": (1.0,)}, InvalidRequest, "two sigmas"),
        ({"sigmas": (1.0, 2.0)}, InvalidRequest, "descend"),
        ({"sigmas": (math.nan, 0.0)}, InvalidRequest, "finite"),
        ({"sigmas": ("a", 0)}, InvalidRequest, "finite"),
        ({"sigmas": tuple(range(2000, -1, -1))}, InvalidRequest, "2000 steps of sigmas"),
        ({"sigmas": (1e30, 1.0, 0.0)}, InvalidRequest, "65536"),
        ({"sigmas": (1.0, 1e-9, 0.0)}, InvalidRequest, "65536"),
        ({"sigmas": (1.0, 1.0 - 1e-9, 0.0)}, InvalidRequest, "a millionth apart"),
        ({"discard_penultimate": 1}, InvalidRequest, "True, False or None"),
        ({"sigmas": (1.0, 0.0), "steps": 5}, InvalidRequest, "leave out steps"),
        ({"sigmas": (1.0, 0.0), "schedule": "karras"}, InvalidRequest, "leave out steps"),
        ({"schedule": "custom"}, UnknownSchedule, "custom"),
        ({"prompt": ""}, InvalidRequest, "prompt is empty"),
        ({"prompt": " \n"}, InvalidRequest, "prompt is empty"),
        ({"prompt": 3}, InvalidRequest, "must be text"),
        ({"negative_prompt": None}, InvalidRequest, "must be text"),
        ({"steps": 0}, InvalidRequest, "from 1 to 1000"),
        ({"steps": 1001}, InvalidRequest, "from 1 to 1000"),
        ({"steps": 2.5}, InvalidRequest, "whole number"),
        ({"steps": True}, InvalidRequest, "whole number"),
        ({"guidance": math.nan}, InvalidRequest, "from 0 to 100"),
        ({"guidance": math.inf}, InvalidRequest, "from 0 to 100"),
        ({"guidance": -1}, InvalidRequest, "from 0 to 100"),
        ({"guidance": "7"}, InvalidRequest, "from 0 to 100"),
        ({"guidance": 10**400}, InvalidRequest, "from 0 to 100"),
        ({"guidance_rescale": 1.5}, InvalidRequest, "guidance_rescale is 1.5; .* from 0 to 1$"),
        ({"guidance_rescale": None}, InvalidRequest, "from 0 to 1$"),
        ({"guidance_rescale": math.nan}, InvalidRequest, "from 0 to 1$"),
        ({"guidance_interval": (5.0, 0.3)}, InvalidRequest, "0 <= low < high"),
        ({"guidance_interval": (1.0, 1.0)}, InvalidRequest, "0 <= low < high"),
        ({"guidance_interval": (-1.0, 1.0)}, InvalidRequest, "0 <= low < high"),
        ({"guidance_interval": (0.0, math.inf)}, InvalidRequest, "0 <= low < high"),
        ({"guidance_interval": (math.nan, 1.0)}, InvalidRequest, "0 <= low < high"),
        ({"guidance_interval": (False, 1.0)}, InvalidRequest, "0 <= low < high"),
        ({"guidance_interval": (1.0, 2.0, 3.0)}, InvalidRequest, "two noise levels"),
        ({"guidance_interval": ("0", "1")}, InvalidRequest, "two noise levels"),
        ({"guidance_interval": "0,5"}, InvalidRequest, "two noise levels"),
        ({"guidance_interval": 5.0}, InvalidRequest, "two noise levels"),
        ({"prompt": "a \ud83d"}, InvalidRequest, "prompt, column 3: half of a surrogate pair"),
        ({"negative_prompt": "\ud83d"}, InvalidRequest, "negative_prompt, column 1: half"),
        ({"seed": -1}, InvalidRequest, "seed"),
        ({"seed": 2**64}, InvalidRequest, "seed"),
        ({"count": 0}, InvalidRequest, "from 1 to 64"),
        ({"width": 100}, InvalidRequest, "try 96 or 128"),
        ({"height": 129}, InvalidRequest, "try 128 or 160"),
        ({"width": 10**9}, InvalidRequest, "from 64"),
        ({"width": 0}, InvalidRequest, "from 64"),
        ({"rng": "cuda"}, InvalidRequest, "philox, torch"),
        ({"sampler": "eulr"}, UnknownSampler, "did you mean"),
        ({"schedule": "kerras"}, UnknownSchedule, "did you mean 'karras'"),
    ],
)
def test_what_is_out_of_range_is_named_with_what_is_allowed(
    demo: Bundle, values: dict[str, Any], error: type[SdfastError], word: str
) -> None:
    with pytest.raises(error, match=word) as caught:
        resolve(Request(**{"prompt": "a red star", **values}), demo)
    assert "\n" not in str(caught.value)


def test_unknown_parameters_are_named() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'steps'"):
        Request.from_dict({"prompt": "x", "stepz": 3})
    with pytest.raises(InvalidRequest, match="no prompt"):
        Request.from_dict({})
