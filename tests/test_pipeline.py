from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import sdfast
from sdfast import backends, plans, program, samplers, schedules
from sdfast.backends import Engine
from sdfast.errors import BackendUnavailable, Cancelled, InvalidRequest
from sdfast.plans import host
from sdfast.ranges import Range
from sdfast.request import Request, resolve
from sdfast.schedules import NoiseSchedule

PROMPT = "a large red circle on a blue background"
LORAS = Path(__file__).parent.parent / "export" / "demo" / "lora"


def levels_apart(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two pictures, in levels of 255."""
    return max(high for _, high in ImageChops.difference(a, b).getextrema())


def test_a_prompt_becomes_a_picture(demo: sdfast.Pipeline) -> None:
    result = demo(PROMPT, seed=0)
    assert [image.size for image in result.images] == [(128, 128)]
    assert result.seeds == (0,)
    assert set(result.timings) == {"text_encoder", "unet", "vae_decoder", "total"}
    assert all(seconds > 0 for seconds in result.timings.values())
    assert result.request.steps == 20


def test_the_same_seed_gives_the_same_picture(demo: sdfast.Pipeline) -> None:
    first, second = (demo(PROMPT, seed=5, steps=4).images[0] for _ in range(2))
    assert levels_apart(first, second) == 0
    assert levels_apart(first, demo(PROMPT, seed=6, steps=4).images[0]) > 0


@pytest.fixture(scope="module")
def one_thread() -> sdfast.Pipeline:
    return sdfast.load("demo", "onnxruntime", threads=1)


@pytest.mark.parametrize("sampler", samplers.names())
def test_same_seed_gives_the_same_picture_in_any_batch_place_by_any_number_of_threads(
    one_thread: sdfast.Pipeline,
    demo: sdfast.Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
) -> None:
    monkeypatch.setattr(host.CpuPlans, "batch", 8)
    together = demo(PROMPT, seed=3, count=8, steps=2, sampler=sampler)
    assert together.seeds == tuple(range(3, 11))
    for place in (0, 3, 7):
        alone = one_thread(PROMPT, seed=3 + place, steps=2, sampler=sampler).images[0]
        assert levels_apart(together.images[place], alone) == 0


def test_more_images_than_a_batch_are_drawn_in_several(demo: sdfast.Pipeline) -> None:
    seen: list[tuple[int, int | None]] = []
    together = demo(PROMPT, seed=3, count=6, steps=2, callback=lambda *at: seen.append(at))
    assert seen == [(k, 4) for k in range(1, 5)]
    alone = demo(PROMPT, seed=8, steps=2).images[0]
    assert levels_apart(together.images[5], alone) == 0


def test_a_sampler_that_depends_on_data_counts_without_knowing_the_end(
    demo: sdfast.Pipeline,
) -> None:
    seen: list[tuple[int, int | None]] = []
    demo(PROMPT, seed=3, count=2, sampler="dpm_adaptive", callback=lambda *at: seen.append(at))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {of for _, of in seen} == {None}


def test_levels_too_uneven_for_a_sampler_are_refused(demo: sdfast.Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="lms cannot follow"):
        demo(
            PROMPT,
            steps=20,
            sampler="lms",
            schedule="polyexponential",
            schedule_parameters={"rho": 20.0},
        )


ENDS = {"karras": "rho", "polyexponential": "rho", "beta": "alpha", "linear_quadratic": "threshold"}


@pytest.mark.parametrize("sampler", [n for n in samplers.names() if samplers.get(n).static])
@pytest.mark.parametrize("schedule", schedules.names())
@pytest.mark.parametrize("steps", [1, 2, 20, 100])
def test_every_run_has_sane_coefficients_or_is_refused(
    demo: sdfast.Pipeline, sampler: str, schedule: str, steps: int
) -> None:
    allowed = schedules.ranges(schedule).get(ENDS.get(schedule, ""))
    ends = [allowed.low, allowed.high] if isinstance(allowed, Range) else []
    for own in [{}, *({ENDS[schedule]: end} for end in ends)]:
        asked = Request(
            "x", sampler=sampler, schedule=schedule, steps=steps, schedule_parameters=own
        )
        resolved = resolve(asked, demo.bundle)
        traced = program.trace(sampler, resolved.sigmas)
        if traced.largest_coefficient < 1e6:
            assert plans.traced(resolved) == traced
        else:
            assert own, "never at the defaults"
            with pytest.raises(InvalidRequest, match="cannot follow"):
                plans.traced(resolved)


def test_a_path_of_noise_leads_more_steps_to_about_the_same_picture(
    demo: sdfast.Pipeline,
) -> None:
    """Brownian noise is one path, which more steps follow more finely; independent draws of more
    steps are others."""

    def drawn(steps: int, kind: str) -> Image.Image:
        own = {"noise_kind": kind}
        result = demo(PROMPT, seed=1, steps=steps, sampler="dpmpp_2m_sde", sampler_parameters=own)
        return result.images[0]

    def apart(kind: str) -> float:
        a, b = (np.asarray(drawn(steps, kind), float) for steps in (20, 30))
        return float(np.sqrt(((a - b) ** 2).mean()))

    assert apart("brownian") < 0.5 * apart("gaussian")


def test_a_result_can_be_repeated_from_its_request(demo: sdfast.Pipeline) -> None:
    first = demo(PROMPT, steps=4)  # a random seed
    assert levels_apart(first.images[0], demo(first.request).images[0]) == 0


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "uni_pc", "dpmpp_2m"])
@pytest.mark.parametrize("schedule", schedules.names())
def test_every_sampler_and_schedule_draws(
    demo: sdfast.Pipeline, sampler: str, schedule: str
) -> None:
    image = demo(PROMPT, seed=0, steps=5, sampler=sampler, schedule=schedule).images[0]
    assert np.asarray(image).std() > 10


def test_other_sizes_draw(demo: sdfast.Pipeline) -> None:
    assert demo(PROMPT, seed=0, steps=2, width=192, height=96).images[0].size == (192, 96)


def test_guidance_1_leaves_the_unguided_half_out(demo: sdfast.Pipeline) -> None:
    plain = demo(PROMPT, seed=0, steps=4, guidance=1.0).images[0]
    ignored = demo(PROMPT, "stripes", seed=0, steps=4, guidance=1.0).images[0]
    nearly = demo(PROMPT, seed=0, steps=4, guidance=1.0 + 1e-9).images[0]
    assert levels_apart(plain, ignored) == 0
    assert levels_apart(plain, nearly) <= 2


def test_outside_the_interval_the_network_evaluates_half_the_batch(demo: sdfast.Pipeline) -> None:
    batches: list[int] = []

    def watch(done: int, of: int) -> None:
        batches.append(demo._opened["unet"]._bound["latent"].shape[0])  # type: ignore[attr-defined]

    demo(PROMPT, count=2, steps=12, guidance_interval=(0.3, 5.0), callback=watch)
    betas = demo.bundle.manifest.betas
    ns = NoiseSchedule.from_betas(betas.name, betas.start, betas.end, betas.count)
    sigmas = schedules.sigmas(demo.bundle.defaults.schedule, 12, ns)[:-1]
    assert batches == [4 if 0.3 < sigma <= 5.0 else 2 for sigma in sigmas]
    assert {2, 4} == set(batches)


def test_an_interval_of_everything_is_plain_guidance_and_of_nothing_none_bit_for_bit(
    demo: sdfast.Pipeline,
) -> None:
    def draw(**parameters: Any) -> Image.Image:
        return demo(PROMPT, seed=0, steps=5, **parameters).images[0]

    plain, unguided = draw(guidance=4.0), draw(guidance=1.0)
    assert levels_apart(plain, draw(guidance=4.0, guidance_interval=(0.0, 1000.0))) == 0
    assert levels_apart(unguided, draw(guidance=4.0, guidance_interval=(500.0, 1000.0))) == 0
    between = draw(guidance=4.0, guidance_interval=(0.3, 5.0))
    assert min(levels_apart(between, other) for other in (plain, unguided)) > 2


def test_rescale_takes_back_contrast(demo: sdfast.Pipeline) -> None:
    def draw(**parameters: Any) -> Image.Image:
        return demo(PROMPT, seed=0, steps=5, guidance=12.0, **parameters).images[0]

    plain = draw()
    assert levels_apart(plain, draw(guidance_rescale=0.0)) == 0
    assert np.asarray(draw(guidance_rescale=1.0)).std() < np.asarray(plain).std()


def test_the_negative_prompt_matters(demo: sdfast.Pipeline) -> None:
    plain = demo(PROMPT, seed=0, steps=4).images[0]
    assert levels_apart(plain, demo(PROMPT, "green", seed=0, steps=4).images[0]) > 2


def test_the_names_of_diffusers_mean_the_same(demo: sdfast.Pipeline) -> None:
    ours = demo(PROMPT, seed=9, steps=4, guidance=3.0, count=2, rng="torch")
    theirs = demo(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=3.0,
        num_images_per_prompt=2,
        generator=torch.Generator().manual_seed(9),
    )
    assert ours.request == theirs.request
    assert levels_apart(ours.images[1], theirs.images[1]) == 0


def test_progress_is_told_and_false_cancels(demo: sdfast.Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    demo(PROMPT, steps=3, count=5, callback=lambda done, of: seen.append((done, of)))
    assert seen == [(k, 6) for k in range(1, 7)]
    with pytest.raises(Cancelled, match="cancelled"):
        demo(PROMPT, steps=3, callback=lambda done, of: done < 2)
    assert demo(PROMPT, steps=2).images  # and the pipeline goes on


def test_a_closed_pipeline_opens_again() -> None:
    pipe = sdfast.load("demo", "onnxruntime", threads=1)
    first = pipe(PROMPT, seed=0, steps=2).images[0]
    pipe.close()
    assert levels_apart(first, pipe(PROMPT, seed=0, steps=2).images[0]) == 0


def test_the_decoder_opens_no_earlier_than_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def watched(file: Path, *more: Any) -> Engine:
        opened.append(file.stem)
        return open_engine(file, *more)

    open_engine = backends.open_engine
    monkeypatch.setattr(backends, "open_engine", watched)
    pipe = sdfast.load("demo", "onnxruntime", low_memory=True)
    seen: list[list[str]] = []
    pipe(PROMPT, steps=1, callback=lambda *_: seen.append(list(opened)))
    assert "unet" in seen[0]
    assert "vae_decoder" not in seen[0]
    assert opened[-1] == "vae_decoder"


def test_a_controlnet_is_opened_once_for_all_loras_and_closed_to_spare_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    closed: list[str] = []

    def watched(file: Path, *more: Any) -> Engine:
        engine = open_engine(file, *more)
        opened.append(file.stem)
        close = engine.close

        def closing() -> None:
            closed.append(file.stem)
            close()

        monkeypatch.setattr(engine, "close", closing)
        return engine

    open_engine = backends.open_engine
    monkeypatch.setattr(backends, "open_engine", watched)
    pipe = sdfast.load("demo", "onnxruntime", low_memory=True, lora_dir=LORAS)
    control = {"bundle": "demo-control", "image": Image.new("RGB", (64, 64))}
    given: dict[str, Any] = {"steps": 1, "width": 64, "height": 64, "control": control}
    given["image"] = control["image"]
    for words in ("", "<lora:pine>"):
        pipe(PROMPT + words, **given)
    assert opened.count("controlnet") == 1
    assert opened.count("unet_adapters") == 2
    assert closed.count("controlnet") == closed.count("vae_encoder") == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"steps": 3, "num_inference_steps": 3}, "steps is given twice"),
        ({"seed": 1, "generator": torch.Generator()}, "seed is given twice"),
        ({"generator": 3}, "must be one torch.Generator"),
        ({"step": 3}, "did you mean 'steps'"),
        ({"steps": 0}, "from 1 to 1000"),
    ],
)
def test_wrong_parameters_are_refused(
    demo: sdfast.Pipeline, arguments: dict[str, Any], word: str
) -> None:
    with pytest.raises(InvalidRequest, match=word):
        demo(PROMPT, **arguments)
    with pytest.raises(InvalidRequest, match="carries every parameter"):
        demo(sdfast.Request(PROMPT), steps=3)


def test_wrong_devices_and_backends_are_refused() -> None:
    with pytest.raises(BackendUnavailable, match="use auto, cpu, cuda or cuda:N"):
        sdfast.load("demo", device="tpu")
    with pytest.raises(InvalidRequest, match="threads"):
        sdfast.load("demo", threads=-1)
    with pytest.raises(BackendUnavailable, match="unknown"):
        sdfast.load("demo", backend="nothing")
