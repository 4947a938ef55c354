"""POST txt2img and img2img."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from .... import __version__, infotext
from ....request import Request as Drawn
from ...jobs import Outcome
from .. import pictures
from ..guard import owner, request_id
from ..watching import finished
from .fields import Fields, Img2Img, Txt2Img, told
from .labels import sampler_label
from .options import Chosen
from .translation import Asked, from_picture, from_text

if TYPE_CHECKING:
    from ...service import Service

_JSON = "application/json"
PREVIEWS = 5  # evaluations between those that `GET progress` shows
_UNTOLD = {"init_images", "mask", "latent_mask", "comments", "script_args", "alwayson_scripts"}
"""Fields that the answer does not repeat: pictures, and what may be anything."""


class Answer(BaseModel):
    """What both answer."""

    images: list[str] = Field(description="PNG in base64")
    parameters: dict[str, Any] = Field(description="what was sent, without pictures")
    info: str = Field(description="JSON: seed, all_seeds, infotexts, width, height, prompt, …")


def add(routes: APIRouter, service: Service, chosen: Chosen) -> None:
    """The routes."""

    @routes.post("/txt2img", response_model=Answer)
    async def txt2img(fields: Txt2Img, request: Request) -> Response:
        """Draws pictures of a text."""
        return await _drawn(fields, await from_text(fields, service), request)

    @routes.post("/img2img", response_model=Answer)
    async def img2img(fields: Img2Img, request: Request) -> Response:
        """Draws pictures from one, or a part of it anew."""
        return await _drawn(fields, await from_picture(fields, service), request)

    async def _drawn(fields: Fields, asked: Asked, request: Request) -> Response:
        who = owner(request)
        job = await service.submit(
            asked.request,
            model=asked.model or chosen.of(who),
            owner=who,
            preview_every=PREVIEWS,
            id=request_id(request),
        )
        outcome = await finished(service, job, request)
        images = [] if fields.send_images is False else await pictures.encoded(outcome)
        answer = {
            "images": pictures.as_base64(images),
            "parameters": _sent(fields),
            "info": json.dumps(info(outcome, fields, service.models[outcome.model].digest)),
        }
        # As ASCII: what was sent may be no text.
        return Response(json.dumps(answer), headers=told(asked.ignored), media_type=_JSON)


def info(outcome: Outcome, fields: Fields, digest: str) -> dict[str, Any]:
    """What A1111 tells of pictures beside them."""
    made, seeds = outcome.request, outcome.seeds
    count, first = len(seeds), outcome.images[0]
    return {
        "prompt": made.prompt,
        "all_prompts": [made.prompt] * count,
        "negative_prompt": made.negative_prompt,
        "all_negative_prompts": [made.negative_prompt] * count,
        "seed": seeds[0],
        "all_seeds": list(seeds),
        "subseed": seeds[0],
        "all_subseeds": list(seeds),
        "subseed_strength": 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": sampler_label(str(made.sampler)),
        "cfg_scale": made.guidance,
        "steps": made.steps,
        "batch_size": fields.batch_size or 1,
        "restore_faces": False,
        "sd_model_name": outcome.model,
        "sd_model_hash": digest[:10],
        "denoising_strength": made.strength if made.hires is None else made.hires.get("denoise"),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [_infotext(made, seed, outcome.model) for seed in seeds],
        "styles": [],
        "clip_skip": made.clip_skip + 1,
        "version": f"sdfast {__version__}",
    }


def _infotext(made: Drawn, seed: int, model: str) -> str:
    return infotext.write(replace(made, seed=seed, count=1), model, __version__)


def _sent(fields: Fields) -> dict[str, Any]:
    """The fields that are known, as they came: no pictures, and nothing that is not A1111's."""
    known = set(type(fields).model_fields) - _UNTOLD
    return fields.model_dump(include=known)
