"""Faults under load: what was accepted is answered once and right, and the service goes on."""

from __future__ import annotations

import ast
import asyncio
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdfast
from sdfast.errors import InvalidRequest
from sdfast.pipeline import Pipeline
from sdfast.request import Request
from sdfast.service import Job, Limits, Outcome, Service
from sdfast.service import service as services
from sdfast.service.refusals import BadOutput, Broken, Stopped, TooLarge, Unavailable

pytestmark = pytest.mark.slow  # processes by the dozen, for minutes

CIRCLE = "a small red circle on a blue background"
STAR = "a large yellow star on a black background"
FAULTY = Path(__file__).with_name("faulty_worker.py")
PICTURE = Image.effect_noise((64, 64), 60).convert("RGB")
MIXED = [
    Request(CIRCLE, seed=1, steps=4, width=64, height=64),
    Request(STAR, seed=2, steps=6, width=64, height=64, sampler="euler_ancestral", guidance=6.0),
    Request(CIRCLE, seed=3, steps=5, width=96, height=64, sampler="heun", guidance=1.0),
    Request(STAR, "blue", seed=4, steps=3, width=64, height=64, sampler="dpmpp_2m_sde", count=2),
    Request(CIRCLE, seed=5, steps=4, width=64, height=64, image=PICTURE, strength=0.6),
    Request("a red [circle|square] AND blue:0.5", seed=6, steps=4, width=64, height=96),
    Request(STAR, seed=7, steps=6, width=64, height=64, cache=2),
    Request(CIRCLE, seed=8, steps=3, width=64, height=64, hires={"scale": 1.5, "steps": 2}),
]


def run(test: Callable[[], Awaitable[None]], seconds: float = 60) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await test()

    asyncio.run(bounded())


def service(fault: str = "", limits: Limits | None = None) -> Service:
    command: dict[str, Any] = {"command": (sys.executable, str(FAULTY), fault)} if fault else {}
    limits = limits or Limits(canary=0)
    return Service(["demo"], backend="onnxruntime", threads=2, limits=limits, **command)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return sdfast.load("demo", backend="onnxruntime", threads=2)


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline) -> list[tuple[Image.Image, ...]]:
    """The pictures of each of MIXED by itself."""
    return [pipeline(request).images for request in MIXED]


@pytest.fixture(autouse=True)
def once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is there when a fault has happened."""
    monkeypatch.setenv("SDFAST_FAULT_ONCE", str(tmp_path / "once"))
    return tmp_path / "once"


def same(one: tuple[Image.Image, ...], other: tuple[Image.Image, ...]) -> bool:
    pairs = zip(one, other, strict=True)
    return all((np.asarray(a) == np.asarray(b)).all() for a, b in pairs)


def value(serving: Service, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = serving.metrics.text().decode().splitlines()
    return sum(float(one.split()[-1]) for one in lines if one.startswith((f"{name} ", f"{name}{{")))


async def answered(job: Job) -> Outcome | Exception:
    try:
        return await job.result()
    except sdfast.errors.SdfastError as error:
        return error


STAGES = ["text_encoder", "context_projection", "time_projection"]
STAGES += ["vae_encoder", "unet", "unet_shallow", "vae_decoder"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_killed_at_any_stage_loses_nothing(
    stage: str, alone: list[tuple[Image.Image, ...]], once: Path
) -> None:
    async def test() -> None:
        async with service(f"die:{stage}") as serving:
            jobs = await asyncio.gather(*(serving.submit(request) for request in MIXED))
            outcomes = await asyncio.gather(*(answered(job) for job in jobs))
            for outcome, pictures in zip(outcomes, alone, strict=True):
                assert isinstance(outcome, Outcome), outcome
                assert same(outcome.images, pictures)
            assert value(serving, "sdfast_requests_total") == len(MIXED)
            assert value(serving, "sdfast_engine_restarts_total") == 1
            assert once.exists()

    run(test)


def test_workers_killed_again_and_again_under_load_answer_all_once_and_right(
    alone: list[tuple[Image.Image, ...]],
) -> None:
    async def test() -> None:
        async with service() as serving:
            ended = list[str]()

            async def ask(k: int) -> Outcome | Exception:
                job = await serving.submit(MIXED[k % len(MIXED)])
                outcome = await answered(job)
                ended.append(job.id)
                return outcome

            asking = [asyncio.create_task(ask(k)) for k in range(4 * len(MIXED))]
            for pause in (0.05, 0.3, 0.7):
                await asyncio.sleep(pause)
                while serving.readiness() is not None:
                    await asyncio.sleep(0.01)
                if not all(task.done() for task in asking):
                    os.kill(serving._keeper.pid or 0, signal.SIGKILL)
            outcomes = await asyncio.gather(*asking)
            for k, outcome in enumerate(outcomes):
                if isinstance(outcome, Outcome):
                    assert same(outcome.images, alone[k % len(MIXED)])
                else:
                    assert isinstance(outcome, Unavailable)
                    assert outcome.retry_after
            assert any(isinstance(outcome, Outcome) for outcome in outcomes)
            assert len(set(ended)) == len(ended) == value(serving, "sdfast_requests_total")
            assert not serving.jobs("")
            while serving.readiness() is not None:
                await asyncio.sleep(0.01)
            job = await serving.submit(MIXED[0])
            assert same((await job.result()).images, alone[0])

    run(test)


def test_a_stopped_worker_is_replaced_and_meanwhile_the_service_is_not_ready(
    alone: list[tuple[Image.Image, ...]],
) -> None:
    async def test() -> None:
        async with service(limits=Limits(stall=1.0, canary=0)) as serving:
            job = await serving.submit(Request(CIRCLE, seed=1, steps=100))
            async for progress in job.events():
                if progress.done:
                    break
            os.kill(serving._keeper.pid or 0, signal.SIGSTOP)
            others = [await serving.submit(request) for request in MIXED[:2]]
            while (why := serving.readiness()) is None:
                await asyncio.sleep(0.01)
            assert "hung" in why
            assert (await job.result()).images
            for other, pictures in zip(others, alone, strict=False):
                assert same((await other.result()).images, pictures)
            assert serving.readiness() is None
            restarts = serving.metrics.text().decode()
            assert 'sdfast_engine_restarts_total{reason="hung"} 1.0' in restarts

    run(test)


def test_a_worker_that_never_comes_back_makes_the_service_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services, "_HOPELESS", 2)

    async def test() -> None:
        async with service("gone") as serving:
            jobs = [await serving.submit(request) for request in MIXED[:3]]
            for job in jobs:  # which have no worker to wait for
                with pytest.raises(Unavailable, match="cannot be started again") as told:
                    await job.result()
                assert told.value.retry_after
            why = serving.readiness()
            assert why is not None
            assert "died" in why
            with pytest.raises(Unavailable, match="cannot be started again"):
                await serving.submit(MIXED[0])

    run(test)


def test_what_is_not_finite_is_never_a_picture(alone: list[tuple[Image.Image, ...]]) -> None:
    async def test() -> None:
        async with service("nan:unet") as serving:
            before = await (await serving.submit(MIXED[0])).result()
            bad = await serving.submit(Request("nan", seed=1, steps=3, width=64, height=64))
            with pytest.raises(BadOutput):
                await bad.result()
            after = await (await serving.submit(MIXED[0])).result()
            assert same(before.images, alone[0])
            assert same(after.images, alone[0])

    run(test)


def test_engines_that_are_broken_are_replaced(alone: list[tuple[Image.Image, ...]]) -> None:
    async def test() -> None:
        async with service("broken:unet") as serving:
            first = serving._keeper.pid
            job = await serving.submit(MIXED[0])
            with pytest.raises(Broken, match="log"):
                await job.result()
            while serving._keeper.pid in (first, None) or serving.readiness() is not None:
                await asyncio.sleep(0.01)
            job = await serving.submit(MIXED[0])
            assert same((await job.result()).images, alone[0])

    run(test)


@pytest.mark.parametrize("damage", ["bits", "cut", "empty", "none"])
def test_a_damaged_entry_of_the_store_is_made_anew(
    damage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alone: list[tuple[Image.Image, ...]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SDFAST_HOME", str(tmp_path / "store"))

    async def test() -> None:
        async with service("keep:0") as serving:
            job = await serving.submit(MIXED[0])
            assert same((await job.result()).images, alone[0])

    run(test)
    kept = sorted((tmp_path / "store/engines").glob("*/network.onnx"))
    assert len(kept) >= 3
    for file in kept:
        data = file.read_bytes()
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
        file.write_bytes({"bits": flipped, "cut": data[:middle], "empty": b""}.get(damage, data))
    capfd.readouterr()
    run(test)
    assert ("is damaged: it is made anew" in capfd.readouterr().err) == (damage != "none")


def test_a_full_disk_costs_time_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alone: list[tuple[Image.Image, ...]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SDFAST_HOME", str(tmp_path / "store"))

    async def test() -> None:
        async with service("keep:4096") as serving:  # no file may be longer
            job = await serving.submit(MIXED[0])
            assert same((await job.result()).images, alone[0])

    run(test)
    assert "cannot be written" in capfd.readouterr().err
    engines = tmp_path / "store/engines"
    assert not [one for one in engines.iterdir() if one.is_dir()]  # nothing is half there


def test_a_worker_that_cannot_be_started_for_want_of_files_is_tried_again(
    alone: list[tuple[Image.Image, ...]],
) -> None:
    async def test() -> None:
        async with service() as serving:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            job = await serving.submit(Request(CIRCLE, seed=1, steps=60))
            await asyncio.sleep(0.05)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (8, hard))
                os.kill(serving._keeper.pid or 0, signal.SIGKILL)
                await asyncio.sleep(1)
                assert serving.readiness() is not None
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert (await job.result()).images
            job = await serving.submit(MIXED[0])
            assert same((await job.result()).images, alone[0])

    run(test)


def test_pictures_are_the_same_in_any_company_and_whoever_leaves_it(
    alone: list[tuple[Image.Image, ...]],
) -> None:
    async def test() -> None:
        chance = random.Random(20251122)
        async with service(limits=Limits(canary=0, rows=6, running=6)) as serving:
            for _ in range(12):
                chosen = [chance.randrange(len(MIXED)) for _ in range(chance.randint(2, 9))]
                jobs = [(k, await serving.submit(MIXED[k])) for k in chosen]
                leaving = chance.sample(jobs, len(jobs) // 3)
                for _, job in leaving:
                    await asyncio.sleep(chance.random() * 0.03)
                    serving.cancel(job.id, "")
                for k, job in jobs:
                    outcome = await answered(job)
                    if isinstance(outcome, Outcome):
                        assert same(outcome.images, alone[k])
                    else:
                        assert isinstance(outcome, Stopped)
                        assert (k, job) in leaving

    run(test)


def test_many_tasks_submit_at_once_and_an_id_is_taken_once() -> None:
    async def test() -> None:
        async with service() as serving:

            async def ask(k: int) -> str | Exception:
                try:
                    job = await serving.submit(MIXED[k % len(MIXED)], id=f"job {k // 2}")
                except InvalidRequest as error:
                    return error
                await job.result()
                return job.id

            found = await asyncio.gather(*(ask(k) for k in range(24)))
            assert len({one for one in found if isinstance(one, str)}) == 12
            refused = [str(one) for one in found if not isinstance(one, str)]
            assert all("choose another id" in one for one in refused)
            assert value(serving, "sdfast_requests_total") == 24 - len(refused)

    run(test)


def test_a_pipeline_draws_for_threads_one_after_the_other(
    pipeline: Pipeline, alone: list[tuple[Image.Image, ...]]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        drawn = list(pool.map(lambda k: pipeline(MIXED[k % 4]).images, range(32)))
    for k, pictures in enumerate(drawn):
        assert same(pictures, alone[k % 4])


@pytest.mark.parametrize(
    "text", ["(", ")", "()", "[", "[a:b:", "a (b:1.1) ", "\\(", "<lora:", "AND "]
)
def test_long_prompts_take_time_in_proportion(text: str) -> None:
    limits = Limits(canary=0, prompt=1_000_000)

    async def test() -> None:
        async with service(limits=limits) as serving:
            with pytest.raises(TooLarge, match="1000000 are allowed"):
                await serving.submit(Request(text * 1_000_000 + "a"))
            seconds = []
            for length in (250_000, 1_000_000):
                prompt = text * (length // len(text))
                begun = time.perf_counter()
                with suppress(InvalidRequest):
                    job = await serving.submit(Request(prompt, steps=1, width=64, height=64))
                    serving.cancel(job.id, "")
                seconds.append(time.perf_counter() - begun)
            assert seconds[1] < 10
            assert seconds[1] < 10 * max(seconds[0], 0.05)  # 16 times were it quadratic

    run(test)


def _clocks(file: Path) -> list[str]:
    """Calls that ask what time it is by a clock that others set."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    named = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
        if alias.name in ("time", "time_ns")
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"time.time", "time.time_ns", *named} or called.endswith(
                ("datetime.now", "datetime.utcnow", "datetime.today")
            ):
                found.append(called)
    return found


def test_nothing_is_timed_by_a_clock_that_can_be_set() -> None:
    folder = Path(services.__file__).parent
    found = {
        str(file.relative_to(folder)): clocks
        for file in folder.rglob("*.py")
        if (clocks := _clocks(file))
    }
    # Dates in answers: `created`, and `job_timestamp`.
    assert set(found) == {"http/openai.py", "http/a1111/progress.py"}, found


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def _left_over() -> set[str]:
    folders = [Path("/dev/shm"), Path(tempfile.gettempdir())]
    return {str(one) for folder in folders for one in folder.glob("*sdfast*")}


@pytest.mark.slow
def test_a_minute_of_good_and_bad_requests_leaves_nothing_behind(
    alone: list[tuple[Image.Image, ...]],
) -> None:
    async def test() -> None:
        chance = random.Random(8)
        accepted, refused, ended = 0, 0, 0

        async def ask(serving: Service) -> None:
            nonlocal accepted, refused, ended
            k, kind = chance.randrange(len(MIXED)), chance.random()
            bad = Request("a \0", width=64) if kind < 0.2 else MIXED[k]
            try:
                job = await serving.submit(bad, deadline=0.01 if 0.2 < kind < 0.3 else None)
            except sdfast.errors.SdfastError:
                refused += 1
                return
            accepted += 1
            if kind > 0.85:
                await asyncio.sleep(chance.random() * 0.05)
                serving.cancel(job.id, "")
            outcome = await answered(job)
            ended += 1
            if isinstance(outcome, Outcome):
                assert same(outcome.images, alone[k])

        async with service(limits=Limits(canary=5)) as serving:
            worker, before = Path(f"/proc/{serving._keeper.pid}"), _left_over()
            sizes = list[tuple[int, int, int]]()
            end = time.monotonic() + 60
            while time.monotonic() < end:
                await asyncio.gather(*(ask(serving) for _ in range(12)))
                status = (worker / "status").read_text()
                theirs = int(status.split("VmRSS:")[1].split()[0])
                files = sum(1 for one in ("/proc/self", worker) for _ in Path(one, "fd").iterdir())
                sizes.append((_resident(), theirs, files))
            half = sizes[len(sizes) // 2]
            assert sizes[-1][0] < 1.05 * half[0] + 4096
            assert sizes[-1][1] < 1.05 * half[1] + 4096
            assert sizes[-1][2] <= half[2] + 4
            assert accepted == ended == value(serving, "sdfast_requests_total")
            assert refused == value(serving, "sdfast_rejected_total")
            assert not value(serving, "sdfast_engine_restarts_total")
            assert not serving.jobs("")
            assert not serving._timers
            assert not serving._retried
            assert _left_over() == before

    run(test, 120)
