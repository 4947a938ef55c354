"""What Hugging Face's Inference clients send for text-to-image: {"inputs", "parameters"} by
diffusers' names, answered by the picture's bytes.

    InferenceClient(model="http://127.0.0.1:8000/models/demo").text_to_image("a small red circle")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from ... import request as requests
from . import pictures
from .errors import RESPONSES
from .guard import owner, request_id
from .settings import Settings
from .watching import finished

if TYPE_CHECKING:
    from ..service import Service

Name = Annotated[str, Path(examples=["demo"])]
_TYPES = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "the picture", "content": {kind: {} for kind in _TYPES}}
}


class Parameters(BaseModel):
    """By diffusers' names."""

    model_config = ConfigDict(extra="forbid", strict=True)

    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = Field(None, description="EulerDiscreteScheduler, or a sampler's name")
    seed: int | None = None
    clip_skip: int | None = None


class Options(BaseModel):
    """Of the hosted service: a model is always there, and nothing is answered from a cache."""

    model_config = ConfigDict(extra="forbid", strict=True)

    wait_for_model: bool | None = None
    use_cache: bool | None = None


class Inputs(BaseModel):
    """What is sent."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "inputs": "a small red circle on a white background",
                    "parameters": {"num_inference_steps": 20, "guidance_scale": 5.0, "seed": 1},
                }
            ]
        },
    )

    inputs: str
    parameters: Parameters | None = None
    options: Options | None = None


def router(service: Service, settings: Settings) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["Hugging Face"], responses=RESPONSES)

    @routes.post("/models/{model}", response_class=Response, responses=_PICTURE)
    async def draw(model: Name, inputs: Inputs, request: Request) -> Response:
        """Draws a picture of a text; the header x-sdfast-seed tells its seed."""
        return await _drawn(model, inputs, request)

    @routes.post("/", response_class=Response, responses=_PICTURE)
    async def draw_at_root(inputs: Inputs, request: Request) -> Response:
        """The same by the first model, as an Inference Endpoint does."""
        return await _drawn(None, inputs, request)

    async def _drawn(model: str | None, inputs: Inputs, request: Request) -> Response:
        asked = translated(inputs)
        who, name = owner(request), request_id(request)
        job = await service.submit(asked, model=model, owner=who, id=name)
        outcome = await finished(service, job, request)
        accepted = request.headers.get("accept", "")
        kind = next((kind for kind in _TYPES if kind in accepted), "image/png")
        (picture,) = await pictures.encoded(outcome, _TYPES[kind])
        seed = {"x-sdfast-seed": str(outcome.seeds[0])}
        return Response(picture, media_type=kind, headers=seed)

    return routes


def translated(inputs: Inputs) -> requests.Request:
    """As a request."""
    given = inputs.parameters or Parameters.model_construct()
    return requests.Request(
        prompt=inputs.inputs,
        negative_prompt=given.negative_prompt or "",
        steps=given.num_inference_steps,
        sampler=given.scheduler,
        guidance=given.guidance_scale,
        seed=given.seed,
        width=given.width,
        height=given.height,
        clip_skip=given.clip_skip or 0,
    )
