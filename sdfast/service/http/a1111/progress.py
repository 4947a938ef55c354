"""GET progress, POST interrupt and skip: of the caller's own requests."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request

from .... import images, previews
from ..guard import owner

if TYPE_CHECKING:
    from ...jobs import Job
    from ...service import Service

_LEAST = 0.01  # of a request that is there: 0 says that none is


def add(routes: APIRouter, service: Service) -> None:
    """The routes."""

    @routes.get("/progress")
    async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """How far the caller's oldest request is that runs. Without any, `progress` and
        `state.job_count` are 0. `current_image` is what it would be if it ended now."""
        jobs = service.jobs(owner(request))
        found = told(jobs)
        shown = None if skip_current_image or not jobs else current(jobs).progress.previews
        if shown:
            found["current_image"] = await asyncio.to_thread(_encoded, shown)
        return found

    @routes.post("/interrupt")
    async def interrupt(request: Request) -> dict[str, Any]:
        """Stops all of the caller's requests, and nobody else's."""
        who = owner(request)
        for job in service.jobs(who):
            service.cancel(job.id, who)
        return {}

    @routes.post("/skip")
    async def skip(request: Request) -> dict[str, Any]:
        """Stops the caller's oldest request that runs; the next one is drawn."""
        who = owner(request)
        if jobs := service.jobs(who):
            service.cancel(current(jobs).id, who)
        return {}


def current(jobs: Sequence[Job]) -> Job:
    """The oldest that runs; the oldest that waits where none does."""
    return next((job for job in jobs if job.progress.state == "running"), jobs[0])


def told(jobs: Sequence[Job]) -> dict[str, Any]:
    """The answer without a picture."""
    if not jobs:
        return _answer(0.0, 0.0, "", 0, "0", 0, 0)
    job = current(jobs)
    at = job.progress
    part = at.done / at.evaluations if at.evaluations else 0.0
    begun = time.localtime(time.time() - (time.monotonic() - job.begun))
    return _answer(
        min(max(part, _LEAST), 1.0),
        at.seconds_left or 0.0,
        job.id,
        len(jobs),
        time.strftime("%Y%m%d%H%M%S", begun),
        at.done,
        at.evaluations or 0,
    )


def _answer(
    part: float, seconds: float, job: str, count: int, begun: str, step: int, steps: int
) -> dict[str, Any]:
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": job,
        "job_count": count,
        "job_timestamp": begun,
        "job_no": 0,
        "sampling_step": step,
        "sampling_steps": steps,
    }
    return {
        "progress": part,
        "eta_relative": seconds,
        "state": state,
        "current_image": None,
        "textinfo": None,
    }


def _encoded(shown: Sequence[Image.Image]) -> str:
    return base64.b64encode(images.png(previews.side_by_side(list(shown)))).decode()
