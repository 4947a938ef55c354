"""sdfast serve, as a process: what it refuses to begin, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from sdfast.cli.serve import serve
from sdfast.service import Limits

LONG = {"prompt": "a small red circle", "steps": 200, "count": 8, "stream": True}
SHORT = {"prompt": "a small red circle", "steps": 1, "width": 64, "height": 64}


class Served:
    """A process, its address and what it says."""

    def __init__(self, *arguments: str, before: Sequence[str] = (), **environment: str) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "sdfast", "serve", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self._listening.set()
        self._listening.set()

    @property
    def url(self) -> str:
        assert self._listening.wait(60)
        found = re.search(r"http://\S+", self.lines[0])
        assert found, self.lines
        return found[0]

    def ready(self) -> str:
        """The address, when it is."""
        end = time.monotonic() + 90
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return self.url
            time.sleep(0.05)
        pytest.fail("".join(self.lines))

    def ended(self, seconds: float = 30) -> int:
        status = self.process.wait(seconds)
        self._reading.join(5)
        return status

    def workers(self) -> list[int]:
        """The processes that it started."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in found.split()]


@pytest.fixture
def begun() -> Iterator[Any]:
    """Starts some, which are ended with the test."""
    served: list[Served] = []

    def start(*arguments: str, **more: Any) -> Served:
        served.append(Served("--port", "0", "--backend", "onnxruntime", *arguments, **more))
        return served[-1]

    yield start
    for one in served:
        one.process.kill()
        one.process.wait()


def gone(pids: list[int], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/cmdline").exists() and cmdline(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def cmdline(pid: int) -> bytes:
    """Empty for a process that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_it_lives_at_once_is_ready_later_and_ends_with_0(begun: Any) -> None:
    served = begun()
    url = served.url
    assert httpx.get(f"{url}/healthz").status_code == 200
    early = httpx.get(f"{url}/readyz")
    assert early.status_code == 503
    assert early.headers["retry-after"]
    refused = httpx.post(f"{url}/v1/generate", json=SHORT)
    assert refused.status_code == 503
    assert refused.headers["retry-after-ms"]
    served.ready()
    assert httpx.post(f"{url}/v1/generate", json=SHORT, timeout=30).status_code == 200
    workers = served.workers()
    assert len(workers) == 1
    served.process.send_signal(signal.SIGTERM)
    assert served.ended() == 0
    assert gone(workers)
    assert all(json.loads(line)["logger"] for line in served.lines[1:])


def test_sigterm_finishes_what_was_accepted_and_takes_nothing_new(begun: Any) -> None:
    served = begun("--running", "2")
    url = served.ready()
    statuses: list[Any] = []

    def ask() -> None:
        body = {**LONG, "steps": 50, "count": 1, "stream": False}
        answer = httpx.post(f"{url}/v1/generate", json=body, timeout=60)
        statuses.append((answer.status_code, len(answer.json().get("images", ()))))

    asking = [threading.Thread(target=ask) for _ in range(6)]
    for one in asking:
        one.start()
    with httpx.Client(base_url=url, timeout=5) as client:
        while len(client.get("/v1/requests").json()["requests"]) < 6:
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        late = client.post("/v1/generate", json=SHORT)
        assert late.status_code == 503
        assert late.headers["retry-after-ms"]
    for one in asking:
        one.join()
    assert statuses == [(200, 1)] * 6
    assert served.ended() == 0


def test_a_second_sigterm_hurries(begun: Any) -> None:
    served = begun()
    url = served.ready()
    with httpx.stream("POST", f"{url}/v1/generate", json=LONG, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert served.process.poll() is None
        begun_at = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert "event: error" in rest
    assert any('"code":"unavailable"' in line for line in rest)
    assert served.ended() == 0
    assert time.monotonic() - begun_at < 3


def test_what_takes_longer_than_the_drain_is_told_to_come_again(begun: Any) -> None:
    served = begun("--drain", "0.3")
    url = served.ready()
    with httpx.stream("POST", f"{url}/v1/generate", json=LONG, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        served.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert any('"code":"unavailable"' in line for line in rest)
    assert served.ended() == 0


def test_sigkill_leaves_no_worker_behind_and_the_next_one_starts(begun: Any) -> None:
    served = begun()
    url = served.ready()
    workers = served.workers()
    with (
        contextlib.suppress(httpx.TransportError),
        httpx.stream("POST", f"{url}/v1/generate", json=LONG, timeout=60) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        served.process.kill()
        list(lines)
    assert gone(workers)
    port = url.rsplit(":", 1)[1]
    again = begun("--port", port)
    assert again.ready() == url


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "give an --api-key"),
        (["--host", "::"], "give an --api-key"),
        (["--api-key", ""], "API key is empty"),
        (["--api-key", "schlüssel"], "not ASCII"),
        (["--cors-origin", "*"], "say which origins"),
        (["--port", "70000"], "from 0 to 65535"),
        (["--queue", "-1"], "limit queue is -1"),
        (["--deadline", "nan"], "limit deadline is nan"),
        (["--body-seconds", "0"], "body_seconds is 0.0"),
        (["--host", "nowhere.invalid", "--insecure"], "cannot be listened at"),
        (["nothing-of-that-name"], "nothing-of-that-name"),
        (["--device", "cuda:99"], "use device cpu"),
        (["--order", "random"], "random"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_said_in_a_line(
    begun: Any, arguments: list[str], message: str
) -> None:
    served = begun(*arguments)
    assert served.ended(90) == 2
    text = "".join(served.lines)
    assert message in text
    assert "Traceback" not in text


def test_a_port_that_is_taken_is_said_in_a_line(begun: Any) -> None:
    port = begun().url.rsplit(":", 1)[1]
    second = begun("--port", port)
    assert second.ended() == 2
    assert f"127.0.0.1:{port} cannot be listened at" in second.lines[-1]


def test_options_may_be_in_the_environment(begun: Any) -> None:
    served = begun(
        *("--host", "0.0.0.0"),
        SDFAST_API_KEYS="one two",
        SDFAST_SERVE_ALLOWED_HOSTS="gallery.example",
        SDFAST_SERVE_STEPS="7",
    )
    url = served.url.replace("0.0.0.0", "127.0.0.1")
    other = {"host": "another.example"}
    assert httpx.get(f"{url}/readyz", headers=other).status_code == 403
    named = {"host": "gallery.example"}
    while httpx.get(f"{url}/readyz", headers=named).status_code != 200:  # which wants no key
        time.sleep(0.05)
    body, two = {**SHORT, "steps": 8}, {**named, "authorization": "Bearer two"}
    assert httpx.post(f"{url}/v1/generate", json=body, headers=named).status_code == 401
    answer = httpx.post(f"{url}/v1/generate", json=body, headers=two)
    assert answer.json()["error"]["message"] == "steps is 8; this service allows up to 7"


def test_more_connections_than_files_are_answered_when_there_are_files(begun: Any) -> None:
    served = begun()
    url = served.ready()
    host, port = url.removeprefix("http://").split(":")
    resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (40, 40))
    with contextlib.ExitStack() as held:
        for _ in range(60):
            held.enter_context(socket.create_connection((host, int(port)), 5))
        time.sleep(0.5)
        assert served.process.poll() is None
    assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200
    assert httpx.post(f"{url}/v1/generate", json=SHORT, timeout=30).status_code == 200


@pytest.mark.parametrize("home", ["/proc", "/nowhere/at/all"])
def test_without_a_home_that_can_be_written_everything_is_drawn(begun: Any, home: str) -> None:
    served = begun(HOME=home, XDG_CACHE_HOME=home, SDFAST_HOME=f"{home}/sdfast", TMPDIR=home)
    url = served.ready()
    assert httpx.post(f"{url}/v1/generate", json=SHORT, timeout=30).status_code == 200


@pytest.mark.skipif(
    subprocess.run(["unshare", "-pf", "true"], capture_output=True, check=False).returncode != 0,
    reason="only some users may have a process namespace of their own",
)
def test_as_the_first_process_of_a_container_it_ends_by_sigterm(begun: Any) -> None:
    served = begun(before=("unshare", "-pf", "--kill-child"))
    url = served.ready()
    (first,) = served.workers()
    with httpx.stream("POST", f"{url}/v1/generate", json={**LONG, "steps": 20}) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(first, signal.SIGTERM)
        assert "event: done" in list(lines)
    assert served.ended() == 0


def test_every_limit_is_an_option_with_its_default() -> None:
    options = {one.name: one for one in serve.params if isinstance(one, click.Option)}
    usual = Limits()
    for name, value in vars(usual).items():
        assert options[name].default == value
        assert options[name].help


def test_without_the_extra_everything_else_works_and_serve_says_what_to_install() -> None:
    code = "import sys; sys.modules[sys.argv[1]] = None; from sdfast.cli import main; main([{}])"
    for missing in ("fastapi", "uvicorn", "prometheus_client"):

        def run(command: str, missing: str = missing) -> subprocess.CompletedProcess[str]:
            arguments = [sys.executable, "-c", code.format(command), missing]
            return subprocess.run(arguments, capture_output=True, text=True, check=False)

        assert run('"samplers"').returncode == 0
        served = run('"serve"')
        assert served.returncode == 2
        assert "pip install sdfast[serve]" in served.stderr
