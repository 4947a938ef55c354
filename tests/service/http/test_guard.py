"""What every request meets before a route: names, keys, bounds; ids and the log."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from served import Serving

from sdfast.service.http.app import app
from sdfast.service.http.guard import JsonLines
from sdfast.service.http.settings import Settings

KEY, OTHER = "a-key-of-26-characters-long", "another key: with spaces"
ASKED = {"prompt": "a secret wish", "steps": 1, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def locked(serving: Serving) -> str:
    """Of a server that asks for a key."""
    return serving.over(Settings(api_keys=(KEY, OTHER), cors_origins=("https://gallery.example",)))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def basic(text: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer,"},
        bearer("wrong"),
        bearer(KEY[:-1]),
        bearer(KEY + "x"),
        bearer(KEY.upper()),
        {"authorization": KEY},
        {"authorization": "Bearer"},
        {"authorization": "Basic"},
        {"authorization": "Basic not-base64!"},
        basic(KEY),
        basic(f"{KEY}:"),
        basic("user:wrong"),
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": KEY},
        {"cookie": f"authorization={KEY}"},
    ],
    ids=range(16),
)
def test_without_the_key_nothing_is_answered(locked: str, headers: Any) -> None:
    answer = httpx.get(f"{locked}/v1/models?api_key={KEY}&key={KEY}", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "Bearer" in answer.headers["www-authenticate"]
    assert KEY not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        bearer(KEY),
        bearer(OTHER),
        {"authorization": f"bearer  {KEY}"},
        basic(f"anyone:{KEY}"),
        basic(f":{OTHER}"),
    ],
    ids=["bearer", "another", "lower case", "basic", "basic without a name"],
)
def test_with_a_key_it_is(locked: str, headers: dict[str, str]) -> None:
    assert httpx.get(f"{locked}/v1/models", headers=headers).status_code == 200


def test_every_route_but_those_of_health_and_the_page_asks_for_the_key(
    locked: str, serving: Serving
) -> None:
    said = app(serving.service, Settings()).openapi()["paths"]
    paths = [path.replace("{", "").replace("}", "") for path in said]
    assert {"/metrics", "/v1/requests", "/v1/generate", "/v1/images/edits"} <= set(paths)
    methods = ("GET", "POST", "HEAD", "OPTIONS", "PROPFIND")
    others = ("/docs", "/redoc", "/openapi.json", "/nothing", "//healthz/")
    routes = [(method, path) for path in (*paths, *others) for method in methods]
    with httpx.Client(base_url=locked) as client:
        for method, path in routes:
            status = client.request(method, f"{locked}{path}").status_code
            free = path in ("/healthz", "/readyz", "/") and method in ("GET", "HEAD")
            assert (status == 401) == (not free), (method, path)
            assert path == "/" or client.get(f"{locked}{path.upper()}").status_code == 401
        assert client.get("/").status_code == 200
        drawn = client.post("/", json={"inputs": "a small red circle"})  # Hugging Face's endpoint
        assert drawn.status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:80"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "127.0.0.1:9"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"origin": ""}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
    ],
    ids=range(12),
)
def test_no_page_of_elsewhere_reaches_a_service_on_this_machine(
    client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    for path in ("/v1/models", "/healthz"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == status
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_form_of_another_page_draws_nothing(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/images/edits", data={"prompt": "a"}, headers={"origin": "http://evil.example"}
    )
    assert answer.status_code == 403


def test_only_pages_that_are_allowed_may_ask_of_elsewhere(locked: str) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "x"}
    for origin, allowed in (("https://gallery.example", True), ("https://evil.example", False)):
        answer = httpx.options(f"{locked}/v1/generate", headers={"origin": origin, **asks})
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        told = httpx.get(f"{locked}/v1/models", headers={"origin": origin, **bearer(KEY)})
        assert told.status_code == (200 if allowed else 403)


def test_a_body_beyond_the_bound_is_refused(client: httpx.Client, serving: Serving) -> None:
    most = serving.service.limits.body
    answer = client.post("/v1/generate", content=b" " * (most + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"

    def endless() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * (most // 10)

    assert client.post("/v1/generate", content=endless()).status_code == 413


class Raw:
    """A connection whose bytes are written by hand."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), 10)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def said(self, data: bytes) -> bytes:
        """All that is answered until the connection is closed."""
        self.socket.sendall(data)
        found = b""
        while part := self.socket.recv(65536):
            found += part
        return found


HEAD = b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("length", [b"1073741824", b"99999999999999999999", b"-1", b"1_0", b"x"])
def test_a_length_beyond_the_bound_is_refused_before_it_comes(url: str, length: bytes) -> None:
    with Raw(url) as raw:
        found = raw.said(HEAD + b"Connection: close\r\nContent-Length: " + length + b"\r\n\r\n")
    assert found.split()[1] in (b"413", b"400")


def test_a_body_that_dribbles_is_given_up(url: str) -> None:
    begun = time.monotonic()
    with Raw(url) as raw:
        found = raw.said(HEAD + b"Content-Length: 1000\r\n\r\n{")
    assert found.split()[1] == b"408"
    assert time.monotonic() - begun < 5


def test_a_head_that_dribbles_or_does_not_come_is_given_up(url: str) -> None:
    begun = time.monotonic()
    with Raw(url) as silent, Raw(url) as slow:
        slow.socket.sendall(b"GET / HT")
        assert silent.said(b"") == b""
        assert slow.said(b"") == b""
    assert 1.5 < time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (64 << 10) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"x" * (64 << 10) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + bytes(200) + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD
        + b"Connection: close\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ],
    ids=["a large header", "many headers", "a long path", "TLS", "a bad chunk", "two lengths"],
)
def test_a_head_that_is_too_large_or_wrong_closes_the_connection(url: str, head: bytes) -> None:
    with Raw(url) as raw:
        try:
            found = raw.said(head)
        except ConnectionError:
            return
    assert found == b"" or found.split()[1] in (b"400", b"431", b"408")


def test_many_parts_of_a_form_are_refused(client: httpx.Client) -> None:
    many = [("image", (f"{k}.png", b"x")) for k in range(10_000)]
    answer = client.post("/v1/images/edits", data={"prompt": "a"}, files=many)
    assert answer.status_code in (400, 413)
    fields = {f"field{k}": "x" for k in range(1000)}
    none = {"image": ("x.png", b"x")}
    assert client.post("/v1/images/edits", data=fields, files=none).status_code == 400


@pytest.mark.parametrize(
    "content",
    [b"", b"--x", b"--x\r\n\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--"],
)
def test_a_form_that_is_none_is_refused(client: httpx.Client, content: bytes) -> None:
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "application/json"):
        answer = client.post("/v1/images/edits", content=content, headers={"content-type": kind})
        assert answer.status_code == 400, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_others_are_answered_while_large_bodies_come(
    client: httpx.Client, url: str, serving: Serving
) -> None:
    """A megabyte of base64 that is no picture, again and again, holds up the loop for no one."""
    text = base64.b64encode(bytes(700_000)).decode()
    body = json.dumps({"prompt": "a", "image": text}).encode()
    ends = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=url) as mine:
            while not ends.is_set():
                answer = mine.post(
                    "/v1/generate", content=body, headers={"content-type": "application/json"}
                )
                assert answer.status_code == 400

    senders = [threading.Thread(target=send) for _ in range(2)]
    for sender in senders:
        sender.start()
    try:
        waits = sorted(_seconds(lambda: client.get("/healthz")) for _ in range(40))
    finally:
        ends.set()
        for sender in senders:
            sender.join()
    assert waits[len(waits) // 2] < 0.1, waits


def _seconds(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def test_an_answer_has_the_id_that_was_given_or_one_of_ours(client: httpx.Client) -> None:
    given = client.get("/healthz", headers={"x-request-id": "mine-1.a_B"})
    assert given.headers["x-request-id"] == "mine-1.a_B"
    for odd in ("", "a b", "x" * 65, "ü", "a/../b"):
        headers = {"x-request-id": odd.encode()}
        ours = client.get("/healthz", headers=headers).headers["x-request-id"]
        assert len(ours) == 24
        assert ours != odd


def test_a_trace_goes_on(client: httpx.Client) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = client.get("/healthz", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    version, same, span, flags = answer.headers["traceparent"].split("-")
    assert (version, same, flags) == ("00", trace, "01")
    assert span != "b7ad6b7169203331"
    for odd in ("", "00-x-y-01", f"00-{'0' * 32}-b7ad6b7169203331-01"):
        assert "traceparent" not in client.get("/healthz", headers={"traceparent": odd}).headers


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines about drawings."""
    lines = [json.loads(JsonLines().format(r)) for r in caplog.records if hasattr(r, "told")]
    return [line for line in lines if line.get("route") == "/v1/generate"]


@pytest.mark.parametrize("told", [False, True], ids=["without prompts", "with prompts"])
def test_the_log_has_a_line_of_json_for_each_request(
    serving: Serving, caplog: pytest.LogCaptureFixture, told: bool
) -> None:
    url = serving.over(Settings(log_prompts=told, api_keys=(KEY,)))
    with caplog.at_level(logging.DEBUG, "sdfast"):
        body = {**ASKED, "negative_prompt": "another wish"}
        answer = httpx.post(f"{url}/v1/generate", json=body, headers=bearer(KEY), timeout=30)
        assert answer.status_code == 200
        httpx.post(f"{url}/v1/generate", json={**body, "steps": 0}, headers=bearer(KEY))
        end = time.monotonic() + 5  # lines are written when answers are sent
        while len(found := logged(caplog)) < 2:
            assert time.monotonic() < end
    drawn, refused = found
    assert drawn["request_id"] == answer.headers["x-request-id"]
    assert (drawn["status"], refused["status"]) == (200, 400)
    assert drawn["model"] == "demo"
    assert drawn["size"] == "64x64"
    assert refused["error"] == "invalid_value"
    assert drawn["owner"].startswith("key ")
    text = caplog.text + json.dumps(found)
    assert ("a secret wish" in text) == told
    assert ("another wish" in text) == told
    assert KEY not in text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"prompt": "a wish", "steps": 2, "size": "64x64"}),
        ("/sdapi/v1/txt2img", {"prompt": "a wish", "steps": 2, "width": 64, "height": 64}),
        (
            "/models/demo",
            {
                "inputs": "a wish",
                "parameters": {"num_inference_steps": 2, "width": 64, "height": 64},
            },
        ),
        (
            "/v2/models/demo/infer",
            {
                "inputs": [
                    {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a wish"]},
                    {"name": "steps", "shape": [1], "datatype": "INT32", "data": [2]},
                    {"name": "width", "shape": [1], "datatype": "INT32", "data": [64]},
                    {"name": "height", "shape": [1], "datatype": "INT32", "data": [64]},
                ]
            },
        ),
    ],
)
def test_the_log_tells_of_what_every_dialect_draws(
    serving: Serving, caplog: pytest.LogCaptureFixture, path: str, body: dict[str, Any]
) -> None:
    url, sent = serving.over(Settings()), {"x-request-id": f"mine{path.count('/')}"}
    with caplog.at_level(logging.INFO, "sdfast"):
        answer = httpx.post(f"{url}{path}", json=body, headers=sent, timeout=30)
        assert answer.status_code == 200, answer.text
        end, found = time.monotonic() + 5, list[dict[str, Any]]()
        while not found:
            lines = [json.loads(JsonLines().format(r)) for r in caplog.records]
            found = [line for line in lines if line.get("request_id") == sent["x-request-id"]]
            assert time.monotonic() < end
    (line,) = found
    assert (line["model"], line["size"], line["steps"], line["count"]) == ("demo", "64x64", 2, 1)
    assert "prompt" not in line


def test_an_error_of_ours_is_told_by_its_id_and_logged(
    serving: Serving, client: httpx.Client, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    def broken() -> bytes:
        raise RuntimeError("at 0x7f3a in /root/secret.py")

    monkeypatch.setattr(serving.service.metrics, "text", broken)
    answer = client.get("/metrics")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret.py" in caplog.text
