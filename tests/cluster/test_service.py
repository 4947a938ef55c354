"""The service on two nodes of Ray: what its replicas promise together."""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from nodes import Nodes

pytest.importorskip("ray", reason="needs Ray: pip install sdfast[ray]")

from ray import serve

from sdfast.errors import InvalidRequest
from sdfast.provenance import digest
from sdfast.service import Limits
from sdfast.service import ray as on_ray
from sdfast.service.http.settings import Settings

pytestmark = pytest.mark.slow  # processes by the dozen, for minutes

ASKED: dict[str, Any] = {"prompt": "a small red circle", "width": 64, "height": 64, "steps": 2}
LONG = {**ASKED, "steps": 200, "count": 4, "width": 128, "height": 128}
LIMITS = Limits(queue=2, running=2, deadline=60.0, canary=0)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Served:
    """The application on the nodes, by the address of its proxies."""

    def __init__(self, bundle: Path) -> None:
        self._settings, self._bundle = Settings(port=free_port()), bundle
        serve.start(http_options=on_ray.http_options(LIMITS, self._settings))
        self.url = f"http://127.0.0.1:{self._settings.port}"

    def running(self) -> int:
        """Replicas that draw."""
        found = serve.status().applications[on_ray.NAME].deployments[on_ray.NAME]
        return found.replica_states.get("RUNNING", 0)

    def by(self, least: int, most: int = 0) -> None:
        """Returns when the least draw."""
        made = on_ray.deployment(
            [self._bundle],
            limits=LIMITS,
            settings=self._settings,
            replicas=on_ray.Replicas(least, most or least, 1),
            device="cpu",
            backend="onnxruntime",
        )
        serve.run(made, name=on_ray.NAME)
        assert self.running() == least


@pytest.fixture
def served(nodes: Nodes, unknown: Path) -> Iterator[Served]:
    made = Served(unknown)
    yield made
    serve.shutdown()


def picture(client: httpx.Client, seed: int) -> str:
    answer = client.post("/v1/generate", json={**ASKED, "seed": seed})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["images"][0]["b64_json"])


def in_work(client: httpx.Client) -> float:
    """Requests that run or wait, of the one replica."""
    lines = client.get("/metrics").text.splitlines()
    names = ("sdfast_requests_running ", "sdfast_requests_waiting ")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def settle(client: httpx.Client, seconds: float) -> None:
    until = time.monotonic() + seconds
    while in_work(client):
        assert time.monotonic() < until
        time.sleep(0.1)


def leave(url: str, stream: bool) -> None:
    """Asks for much, and goes when the first of it has come, or after half a second."""
    asked = {**LONG, "stream": stream}
    with (
        suppress(httpx.ReadTimeout),
        httpx.stream("POST", f"{url}/v1/generate", json=asked, timeout=0.5) as answer,
    ):
        assert answer.status_code in (200, 429)
        next(answer.iter_lines())


@pytest.mark.slow
def test_a_replica_streams_refuses_and_stops_with_its_clients(served: Served) -> None:
    served.by(1)
    with httpx.Client(base_url=served.url, timeout=60) as client:
        # Streaming: progress comes while it is drawn.
        began, seen = time.monotonic(), list[tuple[str, float]]()
        with client.stream("POST", "/v1/generate", json={**LONG, "stream": True}) as answer:
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    seen.append((line.removeprefix("event: "), time.monotonic() - began))
        names = [name for name, _ in seen]
        assert names[-5:] == ["image"] * 4 + ["done"]
        first, last = seen[0][1], seen[-1][1]
        assert names.count("progress") > 10
        assert first < last / 4

        # Full: everybody is answered, and who is refused is told when to come again.
        with ThreadPoolExecutor(40) as pool:
            asked = {**LONG, "count": 1}
            answers = list(pool.map(lambda _: client.post("/v1/generate", json=asked), range(40)))
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) >= LIMITS.running + LIMITS.queue
        assert statuses.count(429) == 40 - statuses.count(200) > 0
        for answer in answers:
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1

        # Clients that go leave nothing behind.
        for stream in (True, False) * 4:
            leave(served.url, stream)
        settle(client, 5)


@pytest.mark.slow
def test_replicas_draw_the_same_pictures(served: Served, nodes: Nodes, unknown: Path) -> None:
    drawn = []
    for replicas in (1, 2):
        served.by(replicas)
        with httpx.Client(base_url=served.url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
            drawn.append(list(pool.map(lambda seed: picture(client, seed), range(8))))
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 8
    # The other node fetched what it had not.
    fetched = nodes.homes["second"] / "received" / digest(unknown)[:32]
    assert (fetched / "bundle.json").read_bytes() == (unknown / "bundle.json").read_bytes()
    assert base64.b64decode(drawn[0][0]).startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_a_lost_node_had_is_drawn_when_it_is_asked_again(served: Served, nodes: Nodes) -> None:
    served.by(2)
    failed = []

    def until_drawn(seed: int) -> str:
        for _ in range(60):
            try:
                answer = httpx.post(
                    f"{served.url}/v1/generate", json={**ASKED, "seed": seed}, timeout=60
                )
            except httpx.TransportError as error:
                failed.append(type(error).__name__)
            else:
                if answer.status_code == 200:
                    return str(answer.json()["images"][0]["b64_json"])
                failed.append(answer.status_code)
            time.sleep(0.5)
        raise AssertionError(failed)

    with ThreadPoolExecutor(4) as pool:
        drawn = [pool.submit(until_drawn, seed) for seed in range(40)]
        while sum(one.done() for one in drawn) < 10:
            time.sleep(0.05)
        nodes.kill("second")
        pictures = [one.result() for one in drawn]
    assert len(set(pictures)) == 40
    assert until_drawn(0) == pictures[0]
    assert not {*failed} - {429, 500, 503, "ReadError", "RemoteProtocolError", "ConnectError"}


def test_the_environment_says_what_options_do(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"QUEUE": "3", "QUEUE_SECONDS": "7.5", "CORS_ORIGINS": "https://a.example", "PORT": ""}
    for name, value in {**said, "LOG_PROMPTS": "true", "HOST": "0.0.0.0"}.items():
        monkeypatch.setenv(f"SDFAST_SERVE_{name}", value)
    assert Limits(**on_ray._told(Limits)) == Limits(queue=3, queue_seconds=7.5)
    assert Settings(**on_ray._told(Settings)) == Settings(
        host="0.0.0.0", cors_origins=("https://a.example",), log_prompts=True
    )
    with pytest.raises(InvalidRequest, match="reached by others: set SDFAST_API_KEYS"):
        on_ray.app({})
    monkeypatch.setenv("SDFAST_SERVE_QUEUE", "many")
    with pytest.raises(InvalidRequest, match="SDFAST_SERVE_QUEUE is 'many'; it must be a number"):
        on_ray.app({})


@pytest.mark.parametrize(
    ("text", "least", "most"), [("", 1, 0), ("2", 2, 2), ("1:4", 1, 4), ("3:3", 3, 3)]
)
def test_replicas_are_a_number_or_a_range(text: str, least: int, most: int) -> None:
    assert on_ray.Replicas.told(text, 8) == on_ray.Replicas(least, most, 8)


@pytest.mark.parametrize("text", ["0", "4:1", "a:b", "-1", "1:2:3", ":2"])
def test_replicas_are_nothing_else(text: str) -> None:
    with pytest.raises(InvalidRequest, match="must be MIN:MAX"):
        on_ray.Replicas.told(text, 0)


@pytest.mark.slow
def test_another_replica_comes_where_requests_wait(served: Served) -> None:
    served.by(1, 2)
    until = time.monotonic() + 90

    def ask() -> None:
        while served.running() < 2 and time.monotonic() < until:
            asked = {**LONG, "count": 1}
            assert httpx.post(f"{served.url}/v1/generate", json=asked, timeout=60).status_code in (
                200,
                429,
            )

    with ThreadPoolExecutor(4) as pool:
        for asking in [pool.submit(ask) for _ in range(4)]:
            asking.result()
    assert served.running() == 2


@pytest.mark.slow
def test_a_signal_ends_the_service_after_what_it_has_accepted(nodes: Nodes) -> None:
    port = free_port()
    command = [sys.executable, "-m", "sdfast", "serve", "--ray-address", nodes.address]
    command += ["--replicas", "1", "--cores", "1", "--port", str(port), "--canary", "0"]
    command += ["--device", "cpu", "--backend", "onnxruntime"]
    serving = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert serving.stderr is not None
    assert any("listening at" in line for line in serving.stderr)
    url = f"http://127.0.0.1:{port}/v1/generate"
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(httpx.post, url, json=LONG, timeout=60)
        time.sleep(1)
        serving.terminate()
        assert asking.result().status_code == 200
    assert serving.wait(60) == 0
    assert on_ray.NAME not in serve.status().applications
