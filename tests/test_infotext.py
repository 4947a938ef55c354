"""The text that A1111 writes: what is written is read back, and what others wrote is understood."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdfast import infotext, samplers, schedules
from sdfast.request import MAX_SEED, Request

LINE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TRAPS = st.sampled_from(
    (
        *("Negative prompt: x", "Negative prompt:", "\n", "\nNegative prompt: \n", " ", "", ", "),
        *("Steps: 20, Sampler: Euler, Seed: 1", '"Steps": 1', "\\", '"', "Prompt lines: 3, a: b"),
    )
)
TEXT = st.lists(LINE | TRAPS, max_size=5).map("\n".join)
REAL = st.floats(0, 100, allow_nan=False)
SECOND = st.fixed_dictionaries(
    {"scale": st.floats(1, 8)},
    optional={
        "steps": st.integers(1, 1000),
        "strength": st.floats(0, 1),
        "guidance": REAL,
        "sampler": st.sampled_from(samplers.names()),
        "schedule": st.sampled_from(schedules.names()),
        "prompt": TEXT,
        "negative_prompt": TEXT,
        "resize": st.just("latent"),
    },
)
REQUESTS = st.builds(
    Request,
    prompt=TEXT,
    negative_prompt=TEXT,
    steps=st.integers(1, 1000),
    sampler=st.sampled_from(samplers.names()),
    schedule=st.sampled_from(schedules.names()),
    guidance=REAL,
    seed=st.integers(0, MAX_SEED),
    width=st.integers(8, 8192),
    height=st.integers(8, 8192),
    rng=st.sampled_from(("philox", "torch")),
    clip_skip=st.integers(0, 11),
    hires=st.none() | SECOND,
    # What has no word there is not to be in the way of the rest:
    guidance_rescale=st.floats(0, 1),
    guidance_interval=st.none() | st.just((0.3, 5.0)),
    cache=st.sampled_from((1, 3, (0, 1, 3))),
    sampler_parameters=st.dictionaries(st.sampled_from(("eta", "s_noise", "noise_kind")), LINE),
)
SAID = (
    *("prompt", "negative_prompt", "steps", "sampler", "schedule", "guidance", "seed"),
    *("width", "height", "rng", "clip_skip", "hires"),
)


@settings(max_examples=2000, deadline=None)
@given(REQUESTS, TEXT)
def test_what_is_written_is_read_back(request: Request, model: str) -> None:
    found = infotext.read(infotext.write(request, model, "1"))
    read = found.request()
    assert {name: getattr(read, name) for name in SAID} == {
        name: getattr(request, name) for name in SAID
    }
    assert found.model == model
    assert found.others["Version"] == "sdfast 1"


@settings(max_examples=1000, deadline=None)
@given(TEXT)
def test_any_text_is_read(text: str) -> None:
    found = infotext.read(text)
    assert found.request().to_dict()["prompt"] == found.parameters["prompt"]


@given(st.floats(0, 1))
def test_how_far_a_picture_was_changed_is_read_back(strength: float) -> None:
    request = Request("x", image="a.png", strength=strength, steps=3, seed=1)
    assert infotext.read(infotext.write(request, "m", "1")).parameters["strength"] == strength


A1111 = """a castle, (by the sea:1.2),
  painted
Negative prompt: blurry,
 low quality
Steps: 25, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 2264519021, \
Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned, Clip skip: 2, ENSD: 31337, RNG: CPU, \
Denoising strength: 0.45, Hires upscale: 1.5, Hires steps: 12, Hires upscaler: Latent (bicubic), \
Lora hashes: "ink: 1d6c, other: 77aa", Version: v1.10.1
"""


def test_a_text_of_a1111_is_understood() -> None:
    found = infotext.read(A1111)
    assert found.request() == Request(
        "a castle, (by the sea:1.2),\n  painted",
        "blurry,\n low quality",
        steps=25,
        sampler="dpmpp_2m_sde",
        schedule="karras",
        guidance=6.5,
        seed=2264519021,
        width=512,
        height=768,
        clip_skip=1,
        rng="torch",
        hires={"scale": 1.5, "steps": 12, "strength": 0.45, "resize": "latent"},
    )
    assert found.model == "v1-5-pruned"
    assert found.others == {
        "Model hash": "6ce0161689",
        "Model": "v1-5-pruned",
        "ENSD": "31337",
        "Lora hashes": "ink: 1d6c, other: 77aa",
        "Version": "v1.10.1",
    }


@pytest.mark.parametrize(
    ("values", "sampler", "schedule"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Sampler: Euler a", "euler_ancestral", "normal"),
        ("Sampler: Euler, Schedule type: Automatic", "euler", "normal"),
        ("Sampler: UniPC, Schedule type: SGM Uniform", "uni_pc", "sgm_uniform"),
        ("Sampler: Restart, Schedule type: Turbo", "Restart", "Turbo"),
    ],
)
def test_samplers_and_schedules_are_those_of_its_labels(
    values: str, sampler: str, schedule: str
) -> None:
    found = infotext.read(f"x\nSteps: 2, {values}, Seed: 1")
    assert (found.parameters["sampler"], found.parameters["schedule"]) == (sampler, schedule)


def test_values_that_are_none_are_kept_aside() -> None:
    found = infotext.read('x\nSteps: many, Size: big, CFG scale: 7, Seed: , Lora: "open')
    assert found.request() == Request("x", guidance=7.0)
    assert found.others == {"Steps": "many", "Size": "big", "Seed": "", "Lora": '"open'}


@pytest.mark.parametrize("text", ["", "a star", "a star\n\nwith: a, colon: b", "\n"])
def test_a_text_without_values_is_a_prompt(text: str) -> None:
    assert infotext.read(text).request() == Request(text)


def test_a_prompt_that_looks_like_a_negative_one_is_told_apart() -> None:
    plain = Request("a", "b", seed=1, steps=1)
    assert "Prompt lines" not in infotext.write(plain, "m", "1")
    odd = replace(plain, prompt="a\nNegative prompt: c")
    assert "Prompt lines: 2" in infotext.write(odd, "m", "1")


def test_labels_are_of_samplers_and_schedules_that_there_are() -> None:
    assert all(samplers.get(label).name == name for name, label in infotext.SAMPLERS.items())
    assert all(schedules.get(label) == name for name, label in infotext.SCHEDULES.items())
