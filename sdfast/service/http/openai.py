"""OpenAI's Images API: generations, edits, models.

Fields of ours are at the top level, where the openai package's `extra_body` puts them, under
diffusers' names too, or in `nvext`. Fields that mean nothing here are accepted and named in the
header x-sdfast-ignored. `response_format` "url" is answered by a data: URL: nothing is stored.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.responses import JSONResponse, Response

from ... import request as requests
from ... import samplers
from ...bundle import Defaults
from ...errors import InvalidRequest
from ..jobs import Job, Outcome
from ..refusals import UnknownModel
from . import forms, pictures
from .errors import RESPONSES
from .events import Events, event
from .fields import Body, Drawing, StrictRoute
from .guard import owner, request_id
from .settings import Settings
from .watching import finished

if TYPE_CHECKING:
    from ..gate import Model
    from ..service import Service

NOTHING = ("quality", "style", "moderation", "user", "input_fidelity", "safety_identifier")
"""Fields that are accepted and mean nothing here."""
NVEXT = ("negative_prompt", "steps", "num_inference_steps", "guidance_scale", "seed", "sampler")
"""Of NVIDIA Dynamo's extension, those that mean something here."""
PARTIAL = 3  # previews of a stream at most
_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}


class Images(Drawing):
    """What generations and edits have in common."""

    model: Annotated[str | None, Field(description="One of /v1/models; without, the first")] = None
    n: Annotated[int | None, Field(description="Images, of seed, seed + 1, …")] = None
    size: Annotated[str | None, Field(description="WIDTHxHEIGHT or auto", examples=["auto"])] = None
    response_format: Annotated[
        Literal["b64_json", "url"] | None, Field(description="url: a data: URL")
    ] = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="Quality of JPEG and WebP; 95 without")
    ] = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    stream: Annotated[bool | None, Field(description="Server-sent events")] = None
    partial_images: Annotated[
        int | None, Field(ge=0, le=PARTIAL, description="Previews in a stream")
    ] = None
    deadline: Annotated[
        float | None, Field(gt=0, description="Seconds after which the answer is of no use")
    ] = None
    num_inference_steps: Annotated[int | None, Field(description="steps, as diffusers")] = None
    guidance_scale: Annotated[float | None, Field(description="guidance, as diffusers")] = None
    nvext: Annotated[dict[str, Any] | None, Field(description="NVIDIA Dynamo's: seed, …")] = None
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    input_fidelity: str | None = None
    safety_identifier: str | None = None

    def extended(self) -> Images:
        """With what `nvext` says in the place of what is not given."""
        more = {name: value for name, value in (self.nvext or {}).items() if name in NVEXT}
        if not more:
            return self
        try:
            return Images.model_validate({**more, **self.model_dump(exclude_none=True)})
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None

    def parameters(self) -> dict[str, Any]:
        found = super().parameters()
        for name, alias in (("steps", "num_inference_steps"), ("guidance", "guidance_scale")):
            value = getattr(self, alias)
            if value is not None and found.setdefault(name, value) != value:
                raise InvalidRequest(f"{name} and {alias} differ: leave one of them out")
        if self.n is not None:
            found["count"] = self.n
        if self.size not in (None, "auto"):
            sides = _SIZE.fullmatch(str(self.size))
            if sides is None:
                raise InvalidRequest(
                    f"size is {str(self.size)[:60]!r}; it must be auto or WIDTHxHEIGHT, as 512x512"
                )
            found["width"], found["height"] = int(sides[1]), int(sides[2])
        if self.background == "transparent":
            raise InvalidRequest("background is transparent; pictures are opaque: leave it out")
        return found

    def ignored(self) -> list[str]:
        """Fields that are given and mean nothing."""
        own = [name for name in NOTHING if getattr(self, name) is not None]
        return [*own, *(f"nvext.{name}" for name in self.nvext or () if name not in NVEXT)]


class Drawn(Body):
    """One picture."""

    b64_json: str | None = None
    url: Annotated[str | None, Field(description="A data: URL")] = None
    seed: int


class Answer(Body):
    """Pictures."""

    created: int
    data: list[Drawn]
    size: str
    background: str
    output_format: str


class Listed(Body):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "sdfast"
    digest: str


class Listing(Body):
    object: Literal["list"] = "list"
    data: list[Listed]


_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"model": Answer, "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


def router(service: Service, settings: Settings) -> APIRouter:
    routes = APIRouter(tags=["OpenAI"], route_class=StrictRoute, responses=RESPONSES)
    openai = _OpenAI(service, settings)

    @routes.post(
        "/v1/images/generations",
        summary="Pictures of a prompt",
        response_model=None,
        responses=_ANSWER,
    )
    async def generations(body: Images, request: Request) -> Response:
        return await openai.answered(body, {}, "image_generation", request)

    @routes.get("/v1/models", summary="The bundles that are served")
    async def models() -> Listing:
        return Listing(data=[_listed(model) for model in service.models.values()])

    @routes.get("/v1/models/{name}", summary="One of them")
    async def model(name: str) -> Listed:
        if name not in service.models:
            raise UnknownModel(f"there is no model {name[:64]!r}: see /v1/models")
        return _listed(service.models[name])

    async def edits(request: Request) -> Response:
        body, given = await forms.read(request, Images, service.limits)
        return await openai.answered(body, given, "image_edit", request)

    routes.add_api_route(
        "/v1/images/edits",
        edits,
        methods=["POST"],
        summary="A picture, or the part of it under a mask, drawn anew",
        response_model=None,
        responses=_ANSWER,
        openapi_extra={"requestBody": forms.schema(Images)},
    )
    return routes


class _OpenAI:
    def __init__(self, service: Service, settings: Settings) -> None:
        self._service, self._settings = service, settings

    async def answered(
        self, body: Images, given: Mapping[str, Any], kind: str, request: Request
    ) -> Response:
        """given: pictures; kind: what events are called."""
        asked = requests.Request.from_dict({**body.extended().parameters(), **given})
        partial = (body.partial_images or 0) if body.stream else 0
        job = await self._service.submit(
            asked,
            model=body.model,
            owner=owner(request),
            deadline=body.deadline,
            preview_every=self._every(asked, body.model, partial) if partial else None,
            id=request_id(request),
        )
        ignored = body.ignored()
        headers = {"x-sdfast-ignored": ", ".join(ignored)} if ignored else {}
        if body.stream:
            return Events(
                self._service,
                job,
                request,
                _streamed(job, body, kind, partial),
                self._settings.heartbeat,
                headers,
                end=event(None, "[DONE]"),
            )
        outcome = await finished(self._service, job, request)
        return JSONResponse(await _answer(outcome, body), headers=headers)

    def _every(self, asked: requests.Request, model: str | None, partial: int) -> int:
        """Evaluations between previews, so that there are as many of them or a few more."""
        found = self._service.models.get(model or next(iter(self._service.models)))
        if found is None:
            return 1  # which is refused
        return every(asked, found.bundle.defaults, partial)


def every(asked: requests.Request, defaults: Defaults, partial: int) -> int:
    """The evaluations between previews of which a request has `partial` at least."""
    steps = asked.steps if asked.steps is not None else defaults.steps
    if asked.image is not None:
        steps = round(steps * (0.6 if asked.strength is None else asked.strength))
    sampler = samplers.get(asked.sampler if asked.sampler is not None else defaults.sampler)
    evaluations = sampler.evaluations(max(1, min(steps, requests.MAX_STEPS))) or steps
    return max(1, evaluations // (partial + 1))


async def _answer(outcome: Outcome, body: Images) -> dict[str, Any]:
    form = body.output_format or "png"
    files = await pictures.encoded(outcome, form, _quality(body))
    key = "url" if body.response_format == "url" else "b64_json"
    before = f"data:{pictures.TYPES[form]};base64," if key == "url" else ""
    data = [
        {key: before + text, "seed": seed}
        for text, seed in zip(pictures.as_base64(files), outcome.seeds, strict=True)
    ]
    return {"created": int(time.time()), "data": data, **_said(outcome, form)}


async def _streamed(job: Job, body: Images, kind: str, partial: int) -> AsyncIterator[bytes]:
    form, shown, told = body.output_format or "png", 0, 0
    request = job.request
    size = (request.width or 0, request.height or 0)
    async for progress in job.events():
        if progress.previewed <= told or shown == partial:
            continue
        told = progress.previewed
        for place, text in enumerate(await pictures.previews(progress.previews, form, size)):
            said = {
                "type": f"{kind}.partial_image",
                "b64_json": text,
                "partial_image_index": shown,
                "image_index": place,
                **_described(f"{size[0]}x{size[1]}", form),
            }
            yield event(said["type"], said)
        shown += 1
    outcome = await job.result()
    texts = pictures.as_base64(await pictures.encoded(outcome, form, _quality(body)))
    for place, (text, seed) in enumerate(zip(texts, outcome.seeds, strict=True)):
        said = {
            "type": f"{kind}.completed",
            "b64_json": text,
            "image_index": place,
            "seed": seed,
            **_described(_size(outcome), form),
            "usage": _USAGE,
        }
        yield event(said["type"], said)


def _said(outcome: Outcome, form: str) -> dict[str, str]:
    return {"size": _size(outcome), "background": "opaque", "output_format": form}


def _described(size: str, form: str) -> dict[str, Any]:
    """What every event has."""
    said = {"size": size, "background": "opaque", "output_format": form, "quality": "auto"}
    return {"created_at": int(time.time()), **said}


def _size(outcome: Outcome) -> str:
    return "{}x{}".format(*outcome.images[0].size)


def _quality(body: Images) -> int:
    return 95 if body.output_compression is None else body.output_compression


def _listed(model: Model) -> Listed:
    return Listed(id=model.name, digest=model.digest)
