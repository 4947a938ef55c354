"""What every request meets before a route does, as pure ASGI.

In this order: an id; whether its Host and Origin are known, so that no page in a browser reaches
a service on this machine by another name; whether it has an API key, on all paths but OPEN's; its
body, bounded in bytes and seconds while it comes. Then the route, whose answer has the id, goes
only as fast as its reader takes it, and is logged as one line of JSON without what was asked.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..jobs import Job
from ..limits import Limits
from .errors import Problem, problem
from .settings import LOOPBACK, Settings

OPEN = ("/healthz", "/readyz", "/")
"""Paths that nobody needs a key to read: what watches the service has none, and the page itself
holds nothing, and asks for it."""
BODIES = 8  # of the largest size that are held at a time
_DISCARDED = 4  # times the largest size of a body that is refused, and taken nevertheless
_HEAD, _HEADER = 32 << 10, 32  # bytes of a path and headers; that each takes beside its own
_PIECE = 1 << 16  # bytes of an answer that are given to the socket at a time
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACE = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")
_log = logging.getLogger("sdfast.http")


def owner(request: Request) -> str:
    """Who asks: a digest of their API key, or their address; by which jobs are theirs."""
    return str(request.scope["state"]["owner"])


def request_id(request: Request) -> str:
    """What the answer's x-request-id says."""
    return str(request.scope["state"]["request_id"])


def _told(job: Job, prompts: bool) -> dict[str, Any]:
    """What the log's line says of a job; of its words where they are wanted."""
    asked = job.request
    told: dict[str, Any] = {
        "model": job.model,
        "size": f"{asked.width}x{asked.height}",
        "steps": asked.steps,
        "count": asked.count,
        "predicted_seconds": round(job.seconds, 3),
    }
    if prompts:
        told.update(prompt=asked.prompt, negative_prompt=asked.negative_prompt)
    return told


@dataclass
class _Answer:
    """What is known of an answer for the log."""

    status: int = 0
    bytes: int = 0
    began: float = 0.0


class Refused(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class SlowReader(Exception):
    """Nobody takes the answer: the server closes the connection."""


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, limits: Limits, settings: Settings) -> None:
        self._app, self._limits, self._settings = app, limits, settings
        self._keys = [_digest(key) for key in settings.api_keys]
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        headers, answer, begun = Headers(scope=scope), _Answer(), monotonic()
        state = scope.setdefault("state", {})
        given = headers.get("x-request-id", "")
        state["request_id"] = given if _ID.fullmatch(given) else secrets.token_hex(12)
        state["trace"] = _traced(headers.get("traceparent", ""))
        send = self._sending(send, state, answer)
        held = 0
        try:
            state["owner"] = self._checked(scope, headers)
            body = await self._body(headers, receive)
            held = len(body)
            await self._app(scope, _replayed(body, receive), send)
        except Refused as refused:
            await refused.problem.response(scope["path"])(scope, receive, send)
        except SlowReader:
            raise
        except Exception as error:
            _log.exception("", extra={"told": {"request_id": state["request_id"]}})
            if answer.status:
                raise
            found = problem(error, state["request_id"])
            await found.response(scope["path"])(scope, receive, send)
        finally:
            self._held -= held
            self._logged(scope, answer, monotonic() - begun)

    def _checked(self, scope: Scope, headers: Headers) -> str:
        """The owner. Raises Refused for whom the service is not there."""
        sizes = (len(name) + len(value) + _HEADER for name, value in headers.raw)
        if len(scope["path"]) + sum(sizes) > _HEAD:
            raise Refused(Problem(431, "the headers are too large", "too_large", None, _CLOSE))
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        if scope["path"] in OPEN and scope["method"] in ("GET", "HEAD"):  # POST / draws
            return "anyone"
        if not self._keys:
            client = scope.get("client")
            return f"address {client[0]}" if client else "address unknown"
        given = _digest(_key(headers.get("authorization", "")))
        # Every key is compared, in the same time whether and where it differs.
        if not sum([hmac.compare_digest(given, key) for key in self._keys]):
            challenge = 'Bearer, Basic realm="sdfast", charset="UTF-8"'
            raise Refused(
                Problem(
                    401,
                    "an API key is needed: send it as Authorization: Bearer KEY",
                    "invalid_api_key",
                    headers={"www-authenticate": challenge},
                )
            )
        return f"key {given.hex()[:16]}"

    def _check_host(self, host: str) -> None:
        allowed = self._settings.allowed_hosts
        if "*" in allowed or not (allowed or self._settings.loopback):
            return
        name = host.rsplit(":", 1)[0] if re.search(r":\d*$", host) else host
        if name.lower() not in (*LOOPBACK, *allowed):
            raise Refused(
                Problem(
                    403,
                    f"this service is not called {host[:60]!r}: its operator can allow the name by "
                    "--allowed-host",
                    "forbidden_host",
                )
            )

    def _check_origin(self, headers: Headers) -> None:
        """A page of elsewhere may not call, whatever its browser knows of keys."""
        origin = headers.get("origin")
        if origin is None or origin in self._settings.cors_origins:
            return
        if origin == "null" or urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise Refused(
                Problem(
                    403,
                    "pages of another origin may not call: its operator can allow one by "
                    "--cors-origin",
                    "forbidden_origin",
                )
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, within its bounds."""
        most = self._limits.body
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > most:
            if declared.isdecimal() and int(declared) <= _DISCARDED * most:
                await self._discard(receive)
            raise Refused(_too_large(most))
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(Problem(499, "the client is gone", "cancelled"))
                    part = message.get("body", b"")
                    size += len(part)
                    self._held += len(part)
                    if size > most:
                        await self._discard(receive)
                        raise Refused(_too_large(most))
                    if self._held > BODIES * most:
                        raise Refused(_too_many())
                    parts.append(part)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            self._held -= size
            seconds = f"{self._settings.body_seconds:g}"
            raise Refused(
                Problem(
                    408,
                    f"the body did not come within {seconds} seconds",
                    "timeout",
                    headers=_CLOSE,
                )
            ) from None
        except BaseException:
            self._held -= size
            raise

    async def _discard(self, receive: Receive) -> None:
        """Takes what still comes for a while, as a client that sends reads no answer."""
        left = _DISCARDED * self._limits.body
        try:
            async with asyncio.timeout(min(2.0, self._settings.body_seconds)):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        return
        except TimeoutError:
            return

    def _sending(self, send: Send, state: Mapping[str, str], answer: _Answer) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.began = message["status"], monotonic()
                more = [
                    (b"x-request-id", state["request_id"].encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if state["trace"]:
                    more.append((b"traceparent", state["trace"].encode()))
                message["headers"] = [*message.get("headers", ()), *more]
                await send(message)
                return
            body, more_body = message.get("body", b""), message.get("more_body", False)
            answer.bytes += len(body)
            for at in range(0, max(len(body), 1), _PIECE):
                last = at + _PIECE >= len(body)
                part = {
                    "type": message["type"],
                    "body": body[at : at + _PIECE],
                    "more_body": more_body or not last,
                }
                try:
                    async with asyncio.timeout(self._settings.write_seconds):
                        await send(part)
                except TimeoutError:
                    raise SlowReader("the answer is not taken") from None

        return sending

    def _logged(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        state = scope["state"]
        route = scope.get("route")
        told = {
            "request_id": state["request_id"],
            "trace": state["trace"][3:35] or None,
            "method": scope["method"],
            "route": getattr(route, "path", None),
            "status": answer.status or 499,
            "bytes": answer.bytes,
            "seconds": round(seconds, 4),
            "owner": state.get("owner"),
        }
        if "error" in state:
            told["error"] = state["error"]
        if "job" in state:
            told.update(_told(state["job"], self._settings.log_prompts))
        level = logging.DEBUG if scope["path"] in ("/healthz", "/readyz") else logging.INFO
        _log.log(level, "", extra={"told": told})


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, and what it tells."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **({"message": record.getMessage()} if record.getMessage() else {}),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then what comes after it: that the client is gone."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return parts.pop() if parts else await receive()

    return replay


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _key(authorization: str) -> str:
    """The key of a header: a bearer's, or the password of Basic."""
    kind, _, given = authorization.partition(" ")
    if kind.lower() == "bearer":
        return given.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _traced(parent: str) -> str:
    """The traceparent of an answer: the caller's trace, with a span of our own."""
    found = _TRACE.fullmatch(parent)
    if found is None or int(found[1], 16) == 0:
        return ""
    return f"00-{found[1]}-{secrets.token_hex(8)}-{found[2]}"


def _too_large(most: int) -> Problem:
    return Problem(
        413, f"the body is above {most} bytes: send a smaller one", "too_large", None, _CLOSE
    )


def _too_many() -> Problem:
    return Problem(
        429,
        "more large requests come than can be held: send it again in a second",
        "overloaded",
        headers={"retry-after": "1", "retry-after-ms": "1000"},
    )


_CLOSE = {"connection": "close"}
