"""A job whose client is watched: it ends when the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.requests import Request

from ..jobs import Job, Outcome

if TYPE_CHECKING:
    from ..service import Service


async def finished(service: Service, job: Job, request: Request) -> Outcome:
    """What the job brings. A client that goes before cancels it: within a step it is Stopped."""
    async with watched(service, job, request):
        return await job.result()


@asynccontextmanager
async def watched(service: Service, job: Job, request: Request) -> AsyncIterator[None]:
    """In whose body the client's leaving cancels the job, as leaving the body before the job's end
    does. The log's line of the request tells of the job."""
    request.scope["state"]["job"] = job

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        service.cancel(job.id, job.owner)

    waiting = asyncio.create_task(wait())
    try:
        yield
    finally:
        waiting.cancel()
        if not job.ended:
            service.cancel(job.id, job.owner)
