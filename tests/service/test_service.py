"""The service without HTTP: jobs beside each other, what is refused, and a worker that is lost."""

import asyncio
import io
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdfast
from sdfast.errors import InvalidRequest, UnknownSampler
from sdfast.request import Request
from sdfast.service import Limits, Outcome, Service
from sdfast.service.refusals import (
    DeadlineExceeded,
    Infeasible,
    Overloaded,
    Stopped,
    TooLarge,
    Unavailable,
    UnknownModel,
)

CIRCLE = "a small red circle on a blue background"
STAR = "a large yellow star on a black background"
FAULTY = Path(__file__).with_name("faulty_worker.py")


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await test()

    asyncio.run(bounded())


def service(limits: Limits | None = None, **more: Any) -> Service:
    return Service(["demo"], backend="onnxruntime", threads=2, limits=limits, **more)


def faulty(fault: str, limits: Limits | None = None, **more: Any) -> Service:
    command = (sys.executable, str(FAULTY), fault)
    return service(limits, command=command, **more)


async def drawn(serving: Service, *requests: Request) -> list[Outcome]:
    jobs = [await serving.submit(request) for request in requests]
    return [await job.result() for job in jobs]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


MIXED = [
    Request(CIRCLE, seed=1, steps=4),
    Request(STAR, seed=2, steps=7, sampler="euler_ancestral", guidance=6.0),
    Request(CIRCLE, seed=3, steps=5, sampler="heun", guidance=1.0),
    Request(STAR, "blue", seed=4, steps=4, sampler="dpmpp_2m_sde", count=2),
    Request(CIRCLE, seed=5, steps=3, sampler="dpm_adaptive"),
    Request("a red [circle|square] AND blue:0.5", seed=6, steps=4),
    Request(CIRCLE, seed=7, steps=4, width=192, height=128),
    Request(STAR, seed=8, steps=6, cache=2),
    Request(CIRCLE, seed=9, steps=3, hires={"scale": 1.5, "steps": 4}),
]


def test_pictures_are_those_of_each_request_alone() -> None:
    pipeline = sdfast.load("demo", backend="onnxruntime", threads=2)
    alone = [pipeline(request) for request in MIXED]

    async def test() -> None:
        async with service() as serving:
            outcomes = await drawn(serving, *MIXED)
        for outcome, result in zip(outcomes, alone, strict=True):
            assert outcome.seeds == result.seeds
            for one, other in zip(outcome.images, result.images, strict=True):
                assert (pixels(one) == pixels(other)).all()

    run(test)


def test_jobs_share_calls_and_join_and_leave_at_any_step() -> None:
    async def test() -> None:
        async with service() as serving:
            long = await serving.submit(Request(CIRCLE, seed=1, steps=60))
            async for progress in long.events():
                if progress.done >= 3:
                    break
            shorts = [await serving.submit(Request(STAR, seed=seed, steps=3)) for seed in range(6)]
            for short in shorts:
                await short.result()
            assert 6 <= long.progress.done < 60
            assert long.progress.evaluations == 60
            await long.result()
            text = serving.metrics.text().decode()
        assert 'sdfast_requests_total{outcome="ok"} 7.0' in text
        shared = [line for line in text.splitlines() if 'batch_size_bucket{le="2.0"}' in line]
        every = [line for line in text.splitlines() if line.startswith("sdfast_batch_size_count")]
        assert float(every[0].split()[1]) - float(shared[0].split()[1]) >= 3

    run(test)


def test_progress_and_previews_come_while_it_is_drawn() -> None:
    async def test() -> None:
        async with service() as serving:
            job = await serving.submit(Request(CIRCLE, seed=1, steps=8), preview_every=2)
            seen = [progress async for progress in job.events()]
        assert [progress.state for progress in seen][-1] == "done"
        assert {progress.previewed for progress in seen} >= {2, 4, 6}
        previews = [p.previews for p in seen if p.previews]
        assert previews[0][0].size == (16, 16)
        left = [p.seconds_left for p in seen if p.seconds_left is not None]
        assert left == sorted(left, reverse=True)

    run(test)


def data_url(image: Image.Image, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return sdfast.service.given.data_url(buffer.getvalue())


def test_a_picture_to_start_from_comes_as_data() -> None:
    picture = Image.new("RGB", (128, 128), "red")
    request = {"prompt": CIRCLE, "seed": 1, "steps": 4, "strength": 0.5}
    pipeline = sdfast.load("demo", backend="onnxruntime", threads=2)
    (expected,) = pipeline(Request(**request, image=picture)).images  # type: ignore[arg-type]

    async def test() -> None:
        async with service() as serving:
            for image in (picture, data_url(picture)):
                (outcome,) = await drawn(serving, Request(**request, image=image))  # type: ignore[arg-type]
                assert (pixels(outcome.images[0]) == pixels(expected)).all()
                assert str(outcome.request.to_dict()["image"]).startswith("sha256:")

    run(test)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"image": "/etc/passwd"}, InvalidRequest, "data URL"),
    ({"image": "http://localhost/picture.png"}, InvalidRequest, "data URL"),
    ({"image": "data:image/png;base64,AAAA"}, InvalidRequest, "no picture that can be read"),
    ({"image": "data:image/png;base64,%%"}, InvalidRequest, "no base64"),
    ({"image": Image.new("L", (1200, 1200))}, TooLarge, "1200×1200"),
    ({"mask": "../mask.png"}, InvalidRequest, "data URL"),
    (
        {"control": {"bundle": "/tmp", "image": Image.new("RGB", (8, 8))}},
        InvalidRequest,
        "not served",
    ),
    ({"prompt": "x" * 9000}, TooLarge, "8000"),
    ({"prompt": "a \0 star"}, InvalidRequest, "NUL"),
    ({"prompt": "a \ud800 star"}, InvalidRequest, "no text"),
    ({"prompt": "a <lora:pine:1> star"}, InvalidRequest, "without LoRA"),
    ({"steps": 500}, InvalidRequest, "200"),
    ({"count": 11}, InvalidRequest, "10"),
    ({"steps": 0}, InvalidRequest, "steps"),
    ({"width": 130}, InvalidRequest, "width"),
    ({"width": 4096, "height": 4096}, InvalidRequest, "64 to 512"),
    ({"hires": {"scale": 8}}, TooLarge, "pixels are allowed"),
    ({"seed": 2**64}, InvalidRequest, "seed"),
    ({"guidance": float("nan")}, InvalidRequest, "guidance"),
    ({"sampler": "eulr"}, UnknownSampler, "euler"),
]


def test_what_is_refused_says_why_and_costs_nothing() -> None:
    async def test() -> None:
        async with service(Limits(input_pixels=1 << 20)) as serving:
            for values, error, words in REFUSED:
                with pytest.raises(error, match=words):
                    await serving.submit(Request(**{"prompt": CIRCLE, **values}))
            with pytest.raises(UnknownModel, match="did you mean 'demo'"):
                await serving.submit(Request(CIRCLE), model="dem")
            with pytest.raises(InvalidRequest, match="preview_every"):
                await serving.submit(Request(CIRCLE), preview_every=0)
            assert not serving.jobs("")
            (outcome,) = await drawn(serving, Request(CIRCLE, steps=2))
            assert 0 <= outcome.seeds[0] < 2**32

    run(test)


def test_a_full_queue_and_hopeless_deadlines_are_refused_at_once() -> None:
    async def test() -> None:
        async with service(Limits(queue=2, running=1)) as serving:
            jobs = [await serving.submit(Request(CIRCLE, steps=30)) for _ in range(3)]
            with pytest.raises(Overloaded) as refused:
                await serving.submit(Request(CIRCLE, steps=4))
            assert refused.value.retry_after is not None
            assert refused.value.retry_after > 0
            for job in jobs:
                assert serving.cancel(job.id, "")
            with pytest.raises(Infeasible, match="deadline"):
                await serving.submit(Request(CIRCLE, steps=200, count=10), deadline=0.5)
            for job in jobs:
                with pytest.raises(Stopped):
                    await job.result()

    run(test)


def test_a_deadline_ends_a_job_that_waits_and_one_that_runs() -> None:
    async def test() -> None:
        async with service(Limits(running=1)) as serving:
            serving._costs = type(serving._costs)()  # as if nothing were known: all are accepted
            running = await serving.submit(Request(CIRCLE, steps=200), deadline=0.4)
            waiting = await serving.submit(Request(CIRCLE, steps=200), deadline=0.2)
            for job in (waiting, running):
                with pytest.raises(DeadlineExceeded, match="seconds"):
                    await job.result()
            (outcome,) = await drawn(serving, Request(CIRCLE, steps=2))
            assert outcome.images

    run(test)


def test_owners_cancel_their_own_jobs_and_nobody_elses() -> None:
    async def test() -> None:
        async with service() as serving:
            mine = await serving.submit(Request(CIRCLE, seed=1, steps=40), owner="me")
            yours = await serving.submit(Request(STAR, seed=2, steps=6), owner="you")
            assert [job.id for job in serving.jobs("me")] == [mine.id]
            assert not serving.cancel(mine.id, "you")
            assert serving.cancel(mine.id, "me")
            assert not serving.cancel(mine.id, "me")
            with pytest.raises(Stopped):
                await mine.result()
            outcome = await yours.result()
        pipeline = sdfast.load("demo", backend="onnxruntime", threads=2)
        (expected,) = pipeline(Request(STAR, seed=2, steps=6)).images
        assert (pixels(outcome.images[0]) == pixels(expected)).all()

    run(test)


def test_higher_priorities_come_first() -> None:
    async def test() -> None:
        async with service(Limits(running=1)) as serving:
            first = await serving.submit(Request(CIRCLE, steps=8))
            low = await serving.submit(Request(CIRCLE, steps=2))
            high = await serving.submit(Request(CIRCLE, steps=2), priority=1)
            await first.result()
            await high.result()
            assert not low.ended
            await low.result()

    run(test)


@pytest.mark.parametrize("stage", ["text_encoder", "unet", "vae_decoder"])
def test_a_worker_that_dies_is_replaced_and_its_jobs_are_drawn(stage: str, tmp_path: Path) -> None:
    async def test() -> None:
        os.environ["SDFAST_FAULT_ONCE"] = str(tmp_path / "once")
        async with faulty(f"die:{stage}") as serving:
            outcomes = await drawn(serving, *MIXED[:3])
            assert [len(outcome.images) for outcome in outcomes] == [1, 1, 1]
            assert (
                'sdfast_engine_restarts_total{reason="died"} 1.0' in serving.metrics.text().decode()
            )
            assert serving.readiness() is None

    run(test)


def test_a_request_that_kills_workers_takes_no_other_with_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with faulty("poison") as serving:
            good = [await serving.submit(request) for request in MIXED[:2]]
            poison = await serving.submit(Request("poison", steps=4))
            with pytest.raises(Unavailable, match="twice") as refused:
                await poison.result()
            assert refused.value.retry_after is not None
            assert all([(await job.result()).images for job in good])

    run(test)


def test_a_worker_that_hangs_is_killed_and_its_jobs_are_drawn(tmp_path: Path) -> None:
    async def test() -> None:
        os.environ["SDFAST_FAULT_ONCE"] = str(tmp_path / "once")
        async with faulty("hang", Limits(stall=1.5)) as serving:
            (outcome,) = await drawn(serving, MIXED[0])
            assert outcome.images
            assert 'restarts_total{reason="hung"} 1.0' in serving.metrics.text().decode()

    run(test)


def test_nothing_of_the_working_folder_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sdfast/__init__.py", "json.py", "numpy.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)

    async def test() -> None:
        async with service() as serving:
            (outcome,) = await drawn(serving, MIXED[0])
            assert outcome.images

    run(test)


def test_a_core_that_hangs_is_found_though_others_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        os.environ["SDFAST_FAULT_ONCE"] = str(tmp_path / "once")
        async with faulty("hang:unet", Limits(stall=1.0)) as serving:
            end, restarts = monotonic() + 20, 0.0
            while not restarts and monotonic() < end:
                jobs = [await serving.submit(Request(STAR, steps=9, seed=k)) for k in range(4)]
                await asyncio.wait(
                    [asyncio.ensure_future(job.result()) for job in jobs],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                restarts = serving.metrics.restarts.labels("hung")._value.get()
            assert restarts == 1

    run(test)


def test_too_little_memory_for_a_batch_makes_it_smaller(tmp_path: Path) -> None:
    async def test() -> None:
        async with faulty("memory") as serving:  # no more than 2 rows in a call
            many = [Request(CIRCLE, seed=seed, steps=3) for seed in range(12)]
            outcomes = await drawn(serving, *MIXED[:2], *many)
            assert all(outcome.images for outcome in outcomes)
            # A few calls that were begun with more, and no more of them later.
            assert 1 <= serving.metrics.shrunk._value.get() <= 6

    run(test)


def test_pictures_of_one_colour_are_an_error(tmp_path: Path) -> None:
    async def test() -> None:
        async with faulty("blank") as serving:
            job = await serving.submit(Request("blank", steps=2))
            with pytest.raises(sdfast.service.refusals.BadOutput, match="one colour"):
                await job.result()

    run(test)


def test_a_worker_that_draws_something_else_is_replaced(tmp_path: Path) -> None:
    async def test() -> None:
        os.environ["SDFAST_FAULT_ONCE"] = str(tmp_path / "once")
        async with faulty("garbage", Limits(canary=0.3)) as serving:
            while "restarts_total{" not in serving.metrics.text().decode():
                await asyncio.sleep(0.05)
            (outcome,) = await drawn(serving, MIXED[0]) if serving.readiness() is None else (None,)
            while serving.readiness() is not None:
                await asyncio.sleep(0.05)
            (outcome,) = await drawn(serving, MIXED[0])
            assert outcome.images

    run(test)


def test_draining_finishes_what_was_accepted_and_takes_nothing_new() -> None:
    async def test() -> None:
        async with service(Limits(running=1)) as serving:
            jobs = [await serving.submit(request) for request in MIXED[:3]]
            draining = asyncio.create_task(serving.drain(20))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="ends"):
                await serving.submit(MIXED[0])
            assert serving.readiness() == "the service ends"
            await draining
            assert all([(await job.result()).images for job in jobs])

    run(test)


def test_what_does_not_end_in_time_is_handed_back_and_a_second_call_hurries() -> None:
    async def test() -> None:
        async with service() as serving:
            job = await serving.submit(Request(CIRCLE, steps=200))
            draining = asyncio.create_task(serving.drain(60))
            await asyncio.sleep(0.1)
            await serving.drain()
            with pytest.raises(Unavailable, match="ends"):
                await job.result()
            await draining

    run(test)


def test_a_worker_ends_with_its_service() -> None:
    async def test() -> int:
        async with service() as serving:
            pid = serving._keeper.pid
            assert pid is not None
            os.kill(pid, 0)
        return pid

    pid = asyncio.run(test())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)


def test_what_cannot_be_served_is_told_at_the_start() -> None:
    async def test() -> None:
        with pytest.raises(sdfast.errors.BackendUnavailable, match="fp16"):
            await Service(["demo"], backend="onnxruntime", precision="fp16").start()

    run(test)
    with pytest.raises(sdfast.errors.BundleError, match="dem0"):
        Service(["dem0"])
    with pytest.raises(InvalidRequest, match="order"):
        Service(["demo"], order="random")
    with pytest.raises(InvalidRequest, match="queue_seconds"):
        Limits(queue_seconds=-1)
    with pytest.raises(InvalidRequest, match="no bundle to draw"):
        Service(["demo-control"])


def test_a_worker_that_cannot_be_started_is_told_at_the_start() -> None:
    async def test() -> None:
        with pytest.raises(Unavailable, match="the worker cannot be started"):
            await Service(["demo"], command=["/nowhere/python"]).start()

    run(test)


def test_it_starts_where_the_standard_error_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with service() as serving:
            assert serving.readiness() is None

    monkeypatch.setattr("sys.stderr", io.StringIO())  # as a notebook's
    run(test)
