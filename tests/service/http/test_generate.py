"""sdfast's own route: everything of a Request, its progress, and its end with its client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from served import Serving

from sdfast.pipeline import Pipeline
from sdfast.service.http.app import app
from sdfast.service.http.guard import SlowReader
from sdfast.service.http.settings import Settings

PROMPT = "a small red circle on a blue background"
ASKED: dict[str, Any] = {"prompt": PROMPT, "steps": 3, "seed": 7, "width": 64, "height": 64}
LONG = {**ASKED, "steps": 200, "count": 4, "width": 128, "height": 128}


def ended(serving: Serving, how: str) -> float:
    """How many requests ended so."""
    return float(serving.service.metrics.requests.labels(how)._value.get())


def events(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of a stream, without its comments."""
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def pixels(answer: httpx.Response) -> bytes:
    return picture(answer.json()["images"][0]["b64_json"]).tobytes()


def test_a_request_brings_its_pictures_and_itself(client: httpx.Client) -> None:
    answer = client.post("/v1/generate", json={**ASKED, "count": 2, "format": "webp"})
    said = answer.json()
    assert said["id"] == answer.headers["x-request-id"]
    assert (said["model"], said["seeds"]) == ("demo", [7, 8])
    assert said["request"]["sampler"] == "dpmpp_2m"
    assert [image["seed"] for image in said["images"]] == [7, 8]
    assert {picture(image["b64_json"]).format for image in said["images"]} == {"WEBP"}
    assert said["seconds"]["total"] > 0


def test_a_picture_is_the_same_alone_beside_others_streamed_and_by_another_dialect(
    client: httpx.Client, url: str, demo: Pipeline
) -> None:
    alone = demo(PROMPT, steps=3, seed=7, width=64, height=64).images[0].tobytes()
    assert pixels(client.post("/v1/generate", json=ASKED)) == alone
    found: list[bytes] = []

    def neighbour(seed: int) -> None:
        body = {**ASKED, "seed": seed, "sampler": "euler_ancestral", "steps": 5 + seed}
        httpx.post(f"{url}/v1/generate", json=body, timeout=30)

    def same() -> None:
        found.append(pixels(httpx.post(f"{url}/v1/generate", json=ASKED, timeout=30)))

    threads = [threading.Thread(target=neighbour, args=(k,)) for k in range(3)]
    threads += [threading.Thread(target=same) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with client.stream("POST", "/v1/generate", json={**ASKED, "stream": True}) as answer:
        told = [data for name, data in events(answer) if name == "image"]
    found.append(picture(told[0]["b64_json"]).tobytes())
    other = {"prompt": PROMPT, "size": "64x64", "num_inference_steps": 3, "seed": 7}
    data = client.post("/v1/images/generations", json=other).json()["data"]
    found.append(picture(data[0]["b64_json"]).tobytes())
    assert found == [alone] * 4


def test_a_stream_tells_progress_previews_pictures_and_the_end(client: httpx.Client) -> None:
    body = {**ASKED, "steps": 40, "count": 2, "stream": True, "preview_every": 4}
    with client.stream("POST", "/v1/generate", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = list(events(answer))
    names = [name for name, _ in told]
    assert set(names) == {"progress", "preview", "image", "done"}
    assert names[-3:] == ["image", "image", "done"]
    steps = [data["done"] for name, data in told if name == "progress"]
    assert steps == sorted(steps)
    previews = [data for name, data in told if name == "preview"]
    assert all(data["done"] % 4 == 0 for data in previews)
    assert all(len(data["images"]) == 2 for data in previews)
    assert picture(previews[0]["images"][0]).format == "PNG"
    assert told[-1][1]["seeds"] == [7, 8]
    assert {data["id"] for _, data in told} == {answer.headers["x-request-id"]}


def test_a_stream_with_nothing_to_say_beats(serving: Serving) -> None:
    url = serving.over(Settings(heartbeat=0.02))
    with httpx.stream("POST", f"{url}/v1/generate", json={**LONG, "stream": True}) as answer:
        for text in answer.iter_text():
            if ":\n\n" in text:
                break
        else:
            pytest.fail("no comment came")
    serving.settled()


def running(client: httpx.Client, seconds: float = 10) -> list[dict[str, Any]]:
    """The caller's requests, when there are some."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = client.get("/v1/requests").json()["requests"]
        if any(one["done"] for one in found):
            return list(found)
    pytest.fail("nothing runs")


def test_a_request_is_cancelled_by_its_id_within_a_step(
    client: httpx.Client, url: str, serving: Serving
) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{url}/v1/generate", json=LONG, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    (one,) = running(client)
    begun = time.monotonic()
    assert client.delete(f"/v1/requests/{one['id']}").json() == {"id": one["id"], "cancelled": True}
    asking.join()
    assert time.monotonic() - begun < 1
    assert answers[0].status_code == 499
    assert answers[0].json()["error"]["code"] == "cancelled"
    assert client.delete(f"/v1/requests/{one['id']}").status_code == 404
    serving.settled()


def test_nobody_sees_or_cancels_what_another_asked_for(serving: Serving) -> None:
    url = serving.over(Settings(api_keys=("one", "two")))
    one, two = (
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"})
        for key in ("one", "two")
    )
    with one, two, one.stream("POST", "/v1/generate", json={**LONG, "stream": True}) as answer:
        told = events(answer)
        name, data = next(told)
        assert name == "progress"
        assert two.get("/v1/requests").json() == {"requests": []}
        assert two.delete(f"/v1/requests/{data['id']}").status_code == 404
        assert running(one)[0]["id"] == data["id"]
        assert one.delete(f"/v1/requests/{data['id']}").status_code == 200
        assert list(told)[-1][0] == "error"
    serving.settled()


@pytest.mark.parametrize("stream", [False, True])
def test_what_runs_ends_when_its_client_is_gone_and_others_are_as_they_were(
    client: httpx.Client, url: str, serving: Serving, stream: bool
) -> None:
    alone = pixels(client.post("/v1/generate", json={**ASKED, "steps": 30}))
    before = ended(serving, "cancelled")
    found: list[bytes] = []

    def neighbour() -> None:
        body = {**ASKED, "steps": 30}
        found.append(pixels(httpx.post(f"{url}/v1/generate", json=body, timeout=60)))

    def leave() -> None:
        with httpx.Client(base_url=url, timeout=0.4) as leaving:
            body = {**LONG, "stream": stream}
            try:
                with leaving.stream("POST", "/v1/generate", json=body) as answer:
                    time.sleep(0.4)
                    del answer
            except httpx.TimeoutException:
                return

    threads = [threading.Thread(target=leave), threading.Thread(target=neighbour)]
    for thread in threads:
        thread.start()
    threads[0].join()
    end = time.monotonic() + 1
    while ended(serving, "cancelled") == before:
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.01)
    threads[1].join()
    assert found == [alone]
    assert listed(client) == []


def listed(client: httpx.Client) -> list[dict[str, Any]]:
    return list(client.get("/v1/requests").json()["requests"])


def test_what_waits_is_dropped_when_its_client_is_gone(
    client: httpx.Client, url: str, serving: Serving
) -> None:
    """Four run; the fifth waits, and is gone before anything is computed for it."""
    leaving = [httpx.Client(base_url=url, timeout=60) for _ in range(5)]
    answers = []
    for one in leaving:
        entered = one.stream("POST", "/v1/generate", json={**LONG, "stream": True})
        answer = entered.__enter__()
        told = events(answer)
        next(told)
        answers.append((entered, answer, told))
    states = [one["state"] for one in listed(client)]
    assert states.count("waiting") == 1
    queued, before = serving.service.metrics.queue._sum.get(), ended(serving, "cancelled")
    answers[-1][1].close()
    end = time.monotonic() + 1
    while ended(serving, "cancelled") == before:
        assert time.monotonic() < end, "it waits on"
        time.sleep(0.01)
    for _, answer, _ in answers:
        answer.close()
    for one in leaving:
        one.close()
    serving.settled()
    assert serving.service.metrics.queue._sum.get() == queued


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/images/generations"])
def test_who_takes_nothing_of_an_answer_is_dropped(
    serving: Serving, client: httpx.Client, path: str
) -> None:
    """The application itself, with a socket that takes the head of a stream and no more."""
    made = app(serving.service, Settings(write_seconds=0.3))
    fields = {"prompt": PROMPT, "steps": 200, "stream": True}
    own = {"width": 128, "height": 128, "count": 4, "preview_every": 1}
    body = json.dumps(
        {**fields, **(own if path == "/v1/generate" else {"n": 4, "partial_images": 3})}
    )
    headers = {"host": "localhost", "content-type": "application/json"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    given = [{"type": "http.request", "body": body.encode()}]
    sent: list[str] = []

    async def receive() -> Any:
        if not given:
            await asyncio.Event().wait()
        return given.pop()

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    before = ended(serving, "cancelled")
    with pytest.raises(SlowReader):
        serving.call(made(scope, receive, send))
    assert sent == ["http.response.start", "http.response.body"]
    assert ended(serving, "cancelled") == before + 1
    assert listed(client) == []
