"""Server-sent events: what a stream of them is made of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import StreamingResponse

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def event(name: str | None, data: Mapping[str, Any] | str) -> bytes:
    """One event; without a name it is a message."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    named = f"event: {name}\n" if name else ""
    return f"{named}data: {text}\n\n".encode()


def stream(events: AsyncIterator[bytes], heartbeat: float) -> StreamingResponse:
    """The response of events, with a comment wherever there is none for `heartbeat` seconds."""
    return StreamingResponse(
        beating(events, heartbeat), media_type="text/event-stream", headers=_HEADERS
    )


async def beating(events: AsyncIterator[bytes], heartbeat: float) -> AsyncIterator[bytes]:
    """The events with comments between."""
    iterator = aiter(events)
    coming = asyncio.ensure_future(anext(iterator, None))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=heartbeat)
            if not done:
                yield b":\n\n"
                continue
            if (one := coming.result()) is None:
                return
            yield one
            coming = asyncio.ensure_future(anext(iterator, None))
    finally:
        coming.cancel()
        await asyncio.wait({coming})
        if hasattr(iterator, "aclose"):
            await iterator.aclose()
