"""Cached requests on the demo bundle: exact where every evaluation runs the whole, near where not;
who refuses a cache; what a picture remembers of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

import sdfast
from sdfast import images, infotext
from sdfast.cli import main
from sdfast.errors import InvalidRequest
from sdfast.pipeline import Pipeline
from sdfast.request import Request

PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return sdfast.load("demo", "onnxruntime", threads=1)


def drawn(pipe: Pipeline, **parameters: Any) -> NDArray[np.float64]:
    found = pipe(PROMPT, **{"seed": 5, "steps": 8, **parameters}).images
    return np.stack([np.asarray(image, np.float64) for image in found])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "heun"])
def test_a_schedule_of_all_evaluations_is_exact_bit_for_bit(pipe: Pipeline, sampler: str) -> None:
    exact = drawn(pipe, sampler=sampler)
    every = tuple(range(15 if sampler == "heun" else 8))
    assert (drawn(pipe, sampler=sampler, cache=1) == exact).all()
    assert (drawn(pipe, sampler=sampler, cache=every) == exact).all()


def test_the_shorter_the_interval_the_nearer_the_picture(pipe: Pipeline) -> None:
    exact = drawn(pipe, steps=20)
    gaps = [np.abs(drawn(pipe, steps=20, cache=n) - exact).mean() for n in (2, 3, 6, 1000)]
    assert gaps == sorted(gaps)
    assert 0 < gaps[0] < 1 < gaps[-1]  # levels of 255


def test_a_picture_is_the_same_in_any_batch_place(pipe: Pipeline) -> None:
    together = drawn(pipe, cache=3, count=5)  # a batch of four, and one alone
    alone = np.concatenate([drawn(pipe, cache=3, seed=5 + k) for k in (0, 3, 4)])
    assert (together[[0, 3, 4]] == alone).all()


def test_a_limited_interval_of_guidance_goes_with_a_cache(pipe: Pipeline) -> None:
    limits = {"guidance_interval": (0.3, 5.0), "steps": 20}
    exact, cached, unlimited = (
        drawn(pipe, **limits),
        drawn(pipe, **limits, cache=3),
        drawn(pipe, steps=20, cache=3),
    )
    assert 0 < np.abs(cached - exact).mean() < 2
    assert np.abs(cached - unlimited).max() > 0


def test_the_network_of_cached_steps_is_opened_when_one_asks_for_it() -> None:
    pipe = sdfast.load("demo", "onnxruntime", threads=1)
    first = drawn(pipe, steps=4)
    assert "unet_shallow" not in pipe._opened._engines
    second = drawn(pipe, steps=4, cache=2)
    assert "unet_shallow" in pipe._opened._engines
    pipe.close()
    assert "unet_shallow" not in pipe._opened._engines
    assert (drawn(pipe, steps=4, cache=2) == second).all()
    assert (drawn(pipe, steps=4) == first).all()


def test_every_evaluation_is_told_cached_or_not(pipe: Pipeline) -> None:
    seen: list[tuple[int, int | None]] = []
    pipe(PROMPT, steps=5, cache=3, callback=lambda done, of: seen.append((done, of)))
    assert seen == [(k, 5) for k in range(1, 6)]


@pytest.mark.parametrize("sampler", ["dpm_adaptive", "supreme"])
def test_a_sampler_that_depends_on_data_refuses_a_cache(pipe: Pipeline, sampler: str) -> None:
    with pytest.raises(InvalidRequest, match=f"sampler {sampler} chooses its steps by the picture"):
        pipe(PROMPT, sampler=sampler, cache=2)


def test_a_bundle_without_the_network_refuses_a_cache(copied: Path) -> None:
    file = copied / "bundle.json"
    raw = json.loads(file.read_text())
    del raw["networks"]["unet_shallow"]
    file.write_text(json.dumps(raw))
    pipe = sdfast.load(copied, "onnxruntime", threads=1)
    assert pipe(PROMPT, steps=1).images
    with pytest.raises(InvalidRequest, match="has no unet_shallow, which cached steps run: leave"):
        pipe(PROMPT, steps=1, cache=3)


@pytest.mark.parametrize(
    ("cache", "word"),
    [
        (0, "cache is 0; it must be auto, an interval from 1 to 1000, or"),
        ((1, 2), r"cache is \(1, 2\)"),
        ((0, 8), "names evaluation 8; the run has 8"),
    ],
)
def test_a_wrong_cache_is_refused(pipe: Pipeline, cache: Any, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        pipe(PROMPT, steps=8, cache=cache)


@pytest.mark.parametrize("cache", [1, 3, (0, 1, 3), (0,)])
def test_a_request_and_its_picture_remember_the_cache(
    pipe: Pipeline, tmp_path: Path, cache: Any
) -> None:
    result = pipe(PROMPT, seed=5, steps=4, cache=cache)
    assert result.request.cache == cache
    assert Request.from_dict(json.loads(json.dumps(result.request.to_dict()))) == result.request
    file = tmp_path / "a.png"
    file.write_bytes(images.encode(result.images[0], "png", result.request, "demo", "0"))
    assert images.read_request(file)[0] == result.request
    line = infotext.write(result.request, "demo", "0")
    texts = {3: "Cache: 3, ", (0, 1, 3): 'Cache: "0, 1, 3", ', (0,): "Cache: 0, "}
    assert texts[cache] in line if cache in texts else "Cache" not in line


def invoked(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_a_picture_repeats_its_cache(tmp_path: Path) -> None:
    first, again = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    done = invoked("generate", PROMPT, "--steps", "4", "--cache", "0,1,3", "--out", first)
    assert done.exit_code == 0, done.output
    assert images.read_request(Path(first))[0].cache == (0, 1, 3)
    assert invoked("generate", "--from", first, "--out", again).exit_code == 0
    with Image.open(first) as one, Image.open(again) as other:
        assert one.info["sdfast"] == other.info["sdfast"]
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate", "x", "--cache", "often"), "--cache is 'often'; it must be an interval, as 3"),
        (
            ("generate", "x", "--cache", "0,b"),
            "it must be an interval, as 3 or auto, or the evaluations",
        ),
        (("generate", "x", "--cache", ","), "cache is ()"),
        (
            ("samplers", "--show", "euler", "--cache", "0"),
            "cache is 0; it must be auto, an interval",
        ),
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence(words: tuple[str, ...], message: str) -> None:
    done = invoked(*words)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ((), [0, 1, 2, 3, 4, 5]),
        (("--cache",), [0, 3]),  # the sampler draws no noise
        (("--cache", "auto"), [0, 3]),
        (("--cache", "2"), [0, 2, 4]),
        (("--cache", "0,1,4"), [0, 1, 4]),
        (("--cache", "0,"), [0]),
    ],
)
def test_a_program_is_shown_with_its_marks(words: tuple[str, ...], whole: list[int]) -> None:
    done = invoked("samplers", "--show", "euler", "--steps", "6", *words)
    evaluations = [line for line in done.output.splitlines() if "D(" in line]
    assert [k for k, line in enumerate(evaluations) if "cached" not in line] == whole


def test_auto_is_nearer_for_a_sampler_that_draws_noise(pipe: Pipeline) -> None:
    for sampler, interval in (("euler", 3), ("euler_ancestral", 2), ("lcm", 1)):
        result = pipe(PROMPT, steps=2, sampler=sampler, cache="auto")
        assert result.request.cache == interval
