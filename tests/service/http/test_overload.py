"""More than can be drawn, and what takes longer than it may: refused at once, by the number."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from served import Serving

PROMPT = "a small red circle on a blue background"
SHORT: dict[str, Any] = {"prompt": PROMPT, "steps": 2, "width": 64, "height": 64}
LONG = {**SHORT, "steps": 200, "count": 4, "width": 128, "height": 128}
ROOM = 12  # requests that run or wait: see served.LIMITS


@pytest.fixture
def full(url: str, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """The queue is full until this is closed, of a service that does not know yet how long requests
    take."""
    serving.settled()
    monkeypatch.setattr(serving.service._costs, "predict", lambda work: 0.0)
    with ExitStack() as fillers:
        client = fillers.enter_context(httpx.Client(base_url=url, timeout=60))
        body = {**LONG, "stream": True}
        for _ in range(ROOM):
            asked = client.stream("POST", "/v1/generate", json=body)
            assert fillers.enter_context(asked).status_code == 200
        yield fillers
    serving.settled()


def test_of_a_burst_what_there_is_room_for_is_drawn_and_the_rest_told_when_to_come(
    url: str, serving: Serving
) -> None:
    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/generate", json={**SHORT, "steps": 10})

    async def burst() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(ask(client) for _ in range(10 * ROOM)))

    answers = asyncio.run(burst())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= ROOM
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "overloaded"
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(answer.headers["retry-after-ms"]) <= 120_000
            assert 1 <= int(answer.headers["retry-after"]) <= 120
    serving.settled()


@pytest.mark.usefixtures("full")
def test_a_full_queue_refuses_in_no_time_and_health_is_as_quick(client: httpx.Client) -> None:
    refusing, healthy = [], []
    for _ in range(20):
        begun = time.monotonic()
        assert client.post("/v1/generate", json=SHORT).status_code == 429
        refusing.append(time.monotonic() - begun)
        for path in ("/healthz", "/readyz", "/metrics"):
            begun = time.monotonic()
            assert client.get(path).status_code == 200
            healthy.append(time.monotonic() - begun)
    assert sorted(refusing)[10] < 0.05, refusing
    assert sorted(healthy)[57] < 0.1, healthy


def test_the_openai_package_waits_as_it_is_told_and_comes_again(
    url: str, serving: Serving, full: ExitStack
) -> None:
    refused = serving.service.metrics.rejected.labels("overloaded")._value.get()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=50) as patient:
        asyncio.run_coroutine_threadsafe(_later(full), serving.loop)
        extra = {"steps": 2}
        answer = patient.images.generate(prompt=PROMPT, size="64x64", extra_body=extra)
    assert answer.data
    assert serving.service.metrics.rejected.labels("overloaded")._value.get() > refused


async def _later(full: ExitStack) -> None:
    await asyncio.sleep(0.3)
    await asyncio.to_thread(full.close)


def test_a_deadline_that_cannot_be_met_is_refused_once_and_for_all(
    url: str, serving: Serving
) -> None:
    counted = serving.service.metrics.rejected.labels("deadline_infeasible")._value
    before = counted.get()
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=5) as patient,
        pytest.raises(openai.InternalServerError) as refused,
    ):
        patient.images.generate(prompt=PROMPT, n=4, extra_body={"steps": 200, "deadline": 0.01})
    assert refused.value.status_code == 504
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert counted.get() == before + 1


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/images/generations"])
def test_a_deadline_that_passes_ends_what_runs_within_a_step(
    client: httpx.Client, serving: Serving, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """As before the service knows how long a request takes."""
    monkeypatch.setattr(serving.service._costs, "predict", lambda work: 0.0)
    fields = {"prompt": PROMPT, "steps": 200, "deadline": 0.2}
    begun = time.monotonic()
    answer = client.post(path, json={**fields, ("n" if "images" in path else "count"): 4})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert 0.2 <= time.monotonic() - begun < 0.8
    serving.settled()


def test_a_deadline_that_passes_in_the_queue_costs_nothing(
    url: str, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.service._costs, "predict", lambda work: 0.0)
    with ExitStack() as fillers:
        client = fillers.enter_context(httpx.Client(base_url=url, timeout=60))
        for _ in range(4):
            body = {**LONG, "stream": True}
            fillers.enter_context(client.stream("POST", "/v1/generate", json=body))
        drawn = serving.service.metrics.queue._sum.get()
        answer = client.post("/v1/generate", json={**SHORT, "deadline": 0.2})
        assert answer.status_code == 504
        assert serving.service.metrics.queue._sum.get() == drawn
    serving.settled()


def test_a_clock_that_jumps_ends_nothing(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(clock) * 1e6 + 2e6)
    answer = client.post("/v1/generate", json={**SHORT, "steps": 20, "deadline": 30})
    assert answer.status_code == 200


@pytest.mark.parametrize("deadline", [0, -1, "NaN", "1e400", '"1"'])
def test_a_deadline_is_a_number_above_0(client: httpx.Client, deadline: Any) -> None:
    body = f'{{"prompt": "a", "deadline": {deadline}}}'
    answer = client.post("/v1/generate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
