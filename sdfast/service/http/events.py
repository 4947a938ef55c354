"""Server-sent events of a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..jobs import Job
from . import errors
from .guard import request_id
from .watching import watched

if TYPE_CHECKING:
    from ..service import Service

_COMMENT = b":\n\n"


def event(name: str | None, data: Mapping[str, Any] | str) -> bytes:
    """One event; without a name it is a message."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    named = f"event: {name}\n" if name else ""
    return f"{named}data: {text}\n\n".encode()


class Events(Response):
    """The events of a job, which is cancelled when nobody reads on, with a comment wherever there
    is no event for `heartbeat` seconds. An error of the job is the last event but for `end`.

    failed: what the event of an error is called
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        service: Service,
        job: Job,
        request: Request,
        events: AsyncIterator[bytes],
        heartbeat: float,
        headers: Mapping[str, str] | None = None,
        failed: str | None = None,
        end: bytes = b"",
    ) -> None:
        usual = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers={**usual, **(headers or {})})
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._service, self._job, self._request = service, job, request
        self._events, self._heartbeat = events, heartbeat
        self._failed, self._end = failed, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with watched(self._service, self._job, self._request):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in beating(self._told(), self._heartbeat):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": self._end})

    async def _told(self) -> AsyncIterator[bytes]:
        try:
            async for one in self._events:
                yield one
        except Exception as error:
            found = errors.logged(error, request_id(self._request))
            errors.note(self._request.scope, found)
            yield event(self._failed, found.body())


async def beating(events: AsyncIterator[bytes], heartbeat: float) -> AsyncIterator[bytes]:
    """The events with comments between."""
    coming = asyncio.ensure_future(_next(events))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=heartbeat)
            if not done:
                yield _COMMENT
                continue
            if (one := coming.result()) is None:
                return
            yield one
            coming = asyncio.ensure_future(_next(events))
    finally:
        coming.cancel()


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)
