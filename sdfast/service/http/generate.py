"""sdfast's own: everything that a Request can say, as JSON, with its progress while it is drawn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ... import request as requests
from ..jobs import Job, Outcome
from ..limits import Limits
from . import pictures
from .errors import RESPONSES
from .events import Events, event
from .fields import Body, Drawing, StrictRoute
from .guard import owner, request_id
from .settings import Settings
from .watching import finished

if TYPE_CHECKING:
    from ..service import Service

_PICTURE = "Base64 of a PNG, JPEG or WebP file, bare or as a data URL"


class Steering(Body):
    """A picture that steers by a ControlNet that is served."""

    bundle: str
    image: Annotated[str | list[str], Field(description=_PICTURE)]
    weight: float | None = None
    start: float | None = None
    end: float | None = None
    preprocess: str | None = None


class Generate(Drawing):
    """A request."""

    model: Annotated[str | None, Field(description="One of /v1/models; without, the first")] = None
    width: Annotated[int | None, Field(description="Pixels", examples=[64])] = None
    height: Annotated[int | None, Field(description="Pixels", examples=[64])] = None
    count: Annotated[int | None, Field(description="Images")] = None
    image: Annotated[str | None, Field(description=f"To start from: {_PICTURE}")] = None
    mask: Annotated[str | None, Field(description=f"White where it is redrawn: {_PICTURE}")] = None
    control: list[Steering] | None = None
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: Annotated[int, Field(ge=0, le=100, description="Of JPEG and WebP")] = 95
    stream: Annotated[bool, Field(description="Server-sent events")] = False
    preview_every: Annotated[
        int | None, Field(ge=1, le=1000, description="Evaluations between previews in a stream")
    ] = None
    deadline: Annotated[
        float | None, Field(gt=0, description="Seconds after which the answer is of no use")
    ] = None
    priority: Annotated[
        int, Field(ge=-10, le=0, description="Below 0 for what may wait for others")
    ] = 0


class Drawn(Body):
    """One picture."""

    b64_json: str
    seed: int
    format: str


class Answer(Body):
    """Pictures, and the request with every default filled in, digests in place of its pictures."""

    id: str
    model: str
    seeds: list[int]
    request: dict[str, Any]
    seconds: dict[str, float]
    images: list[Drawn]


_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"model": Answer, "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


class Cancelled(Body):
    id: str
    cancelled: bool


class Waiting(Body):
    """A request of the caller's on its way."""

    id: str
    model: str
    state: str
    done: int
    evaluations: int | None
    seconds_left: float | None


class Requests(Body):
    requests: list[Waiting]


def router(service: Service, settings: Settings) -> APIRouter:
    routes = APIRouter(tags=["sdfast"], route_class=StrictRoute, responses=RESPONSES)

    @routes.post(
        "/v1/generate", summary="Pictures of a request", response_model=None, responses=_ANSWER
    )
    async def generate(body: Generate, request: Request) -> Response:
        """As JSON, or with `stream` as server-sent events: progress, preview, image for each
        picture, and done; or error."""
        asked = requests.Request.from_dict(
            {**body.parameters(), **await _pictures(body, service.limits)}
        )
        job = await service.submit(
            asked,
            model=body.model,
            owner=owner(request),
            priority=body.priority,
            deadline=body.deadline,
            preview_every=body.preview_every if body.stream else None,
            id=request_id(request),
        )
        if body.stream:
            events = _streamed(job, body)
            return Events(service, job, request, events, settings.heartbeat, failed="error")
        outcome = await finished(service, job, request)
        return JSONResponse({**_said(job, outcome), "images": await _images(outcome, body)})

    @routes.get("/v1/requests", summary="Those of the caller that wait or run")
    async def listed(request: Request) -> Requests:
        return Requests(
            requests=[Waiting(**_progress(job)) for job in service.jobs(owner(request))]
        )

    @routes.delete("/v1/requests/{id}", summary="Cancels one of the caller's, within a step")
    async def cancel(id: str, request: Request) -> Cancelled:  # noqa: A002
        if not service.cancel(id, owner(request)):
            raise HTTPException(404, "there is no such request of yours that waits or runs")
        return Cancelled(id=id, cancelled=True)

    return routes


async def _pictures(body: Generate, limits: Limits) -> dict[str, Any]:
    """Sizes and pictures, as a Request has them."""
    sizes = {name: getattr(body, name) for name in ("width", "height", "count")}
    found: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    if body.image is not None:
        found["image"] = await pictures.read("image", body.image, limits)
    if body.mask is not None:
        found["mask"] = await pictures.read_mask("mask", body.mask, limits)
    if body.control is not None:
        found["control"] = [await _steering(one, limits) for one in body.control]
    return found


async def _steering(one: Steering, limits: Limits) -> Mapping[str, Any]:
    several = one.image if isinstance(one.image, list) else [one.image]
    maps = [await pictures.read("control's image", text, limits) for text in several]
    image: Any = maps if isinstance(one.image, list) else maps[0]
    return {**one.model_dump(exclude_none=True), "image": image}


async def _streamed(job: Job, body: Generate) -> AsyncIterator[bytes]:
    told = 0
    async for progress in job.events():
        yield event("progress", _progress(job))
        if progress.previewed > told:
            told = progress.previewed
            texts = await pictures.previews(progress.previews)
            yield event("preview", {"id": job.id, "done": told, "images": texts})
    outcome = await job.result()
    for place, image in enumerate(await _images(outcome, body)):
        yield event("image", {"id": job.id, "index": place, **image})
    yield event("done", _said(job, outcome))


def _progress(job: Job) -> dict[str, Any]:
    progress = job.progress
    return {
        "id": job.id,
        "model": job.model,
        "state": progress.state,
        "done": progress.done,
        "evaluations": progress.evaluations,
        "seconds_left": progress.seconds_left,
    }


async def _images(outcome: Outcome, body: Generate) -> list[dict[str, Any]]:
    files = pictures.as_base64(await pictures.encoded(outcome, body.format, body.quality))
    return [
        {"b64_json": text, "seed": seed, "format": body.format}
        for text, seed in zip(files, outcome.seeds, strict=True)
    ]


def _said(job: Job, outcome: Outcome) -> dict[str, Any]:
    return {
        "id": job.id,
        "model": outcome.model,
        "seeds": outcome.seeds,
        "request": outcome.request.to_dict(),
        "seconds": dict(outcome.timings),
    }
