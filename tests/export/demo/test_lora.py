"""The demo's LoRA: small, merged by the exporter, and what is drawn with it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sdfast
from sdfast.export import export, lora, sources
from sdfast.export.demo import lora as taught
from sdfast.export.demo import models, scenes
from sdfast.export.demo.sampling import Denoiser, sample

LIMIT = 300_000  # bytes


@pytest.fixture(scope="module")
def merged() -> Denoiser:
    checkpoint, report = lora.merge(sources.read(models.CHECKPOINT), taught.FILE)
    assert report.matched
    assert not report.unmatched
    return checkpoint.components["unet"].module()


def right(denoiser: Denoiser, asked: list[scenes.Scene]) -> int:
    model, rng = models.load(), random.Random(5)
    prompts = [scenes.any_caption(scene, rng) for scene in asked]
    drawn = sample(denoiser, model.autoencoder, model.text, model.tokenizer, prompts)
    return sum(scenes.shows(p, scene) for p, scene in zip(drawn, asked, strict=True))


def in_pine(count: int, seed: int) -> list[scenes.Scene]:
    rng = random.Random(seed)
    return [taught.wanted(rng, held_out=True) for _ in range(count)]


def in_old_colours(count: int, seed: int) -> list[scenes.Scene]:
    rng = random.Random(seed)
    return [scenes.sample(rng, held_out=True) for _ in range(count)]


def test_it_is_small() -> None:
    assert taught.FILE.stat().st_size <= LIMIT


def test_shapes_are_pine_with_it_alone(merged: Denoiser) -> None:
    asked = in_pine(8, seed=41)
    assert right(merged, asked) >= 6
    assert right(models.load().denoiser, asked) <= 3  # it takes any colour, 1 in 40 of them pine


def test_other_colours_stay(merged: Denoiser) -> None:
    assert right(merged, in_old_colours(8, seed=42)) >= 7


def test_at_run_time_it_draws_what_it_draws_merged(tmp_path: Path) -> None:
    bundle = export(models.CHECKPOINT, tmp_path / "pine", recipe="demo", loras=[(taught.FILE, 1.0)])
    prompt = "a large pine star on a blue background"
    call = {"seed": 1, "steps": 8}
    folder = taught.FILE.parent
    for backend in ("onnxruntime", "openvino"):
        together = sdfast.load("demo", backend, precision="fp32", lora_dir=folder)
        merged = sdfast.load(bundle.path, backend, precision="fp32")
        plain, got, want = (
            np.asarray(pipe(text, **call).images[0], np.int16)
            for pipe, text in (
                (together, prompt),
                (together, f"{prompt} <lora:pine>"),
                (merged, prompt),
            )
        )
        assert np.abs(got - want).max() <= 1
        assert np.abs(got - plain).max() > 50
        assert together(prompt, **call).images[0].tobytes() == plain.astype(np.uint8).tobytes()


def test_at_run_time_shapes_are_pine() -> None:
    pipe, rng = sdfast.load("demo", lora_dir=taught.FILE.parent), random.Random(6)
    asked = in_pine(10, seed=45)
    prompts = [f"{scenes.any_caption(scene, rng)} <lora:pine:1>" for scene in asked]
    drawn = [pipe(prompt, seed=k).images[0] for k, prompt in enumerate(prompts)]
    pairs = zip(drawn, asked, strict=True)
    assert sum(scenes.shows(np.asarray(p), scene) for p, scene in pairs) >= 8


@pytest.mark.slow
def test_of_40_prompts_each(merged: Denoiser) -> None:
    assert right(merged, in_pine(40, seed=43)) >= 34
    assert right(merged, in_old_colours(40, seed=44)) >= 34


def test_the_reader_tells_pine_from_all_colours() -> None:
    rng = random.Random(6)
    for _ in range(100):
        scene = taught.wanted(rng, held_out=False)
        assert scenes.shows(scenes.draw(scene, rng), scene)
        other = scenes.sample(rng)
        if other.background not in ("green", "black"):
            assert not scenes.shows(scenes.draw(other, rng), replace(other, colour="pine"))
