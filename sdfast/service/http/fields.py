"""What a body may ask of a drawing, in every dialect of ours: the parameters of a Request, but for
pictures and sizes, which each dialect has its own way to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

_Value = bool | int | float | str | list[float] | None
_Own = dict[str, _Value]


class Body(BaseModel):
    """JSON with these fields and no other, each of its type and no other. null is what is not
    given."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Drawing(Body):
    """What to draw and how: see `sdfast.Request`, whose ranges and defaults these have."""

    prompt: Annotated[str, Field(description="What to draw", examples=["a small red circle"])]
    negative_prompt: Annotated[str | None, Field(description="What it should not show")] = None
    steps: Annotated[int | None, Field(description="Of the sampler", examples=[20])] = None
    sampler: Annotated[
        str | None, Field(description="Name or alias", examples=["dpmpp_2m", "Euler a"])
    ] = None
    schedule: Annotated[str | None, Field(description="Of sigmas", examples=["karras"])] = None
    sampler_parameters: Annotated[_Own | None, Field(examples=[{}])] = None
    schedule_parameters: Annotated[_Own | None, Field(examples=[{}])] = None
    sigmas: Annotated[list[float] | None, Field(description="In place of a schedule's")] = None
    discard_penultimate: bool | None = None
    guidance: Annotated[
        float | None, Field(description="Scale of classifier-free guidance", examples=[7.0])
    ] = None
    guidance_rescale: Annotated[float | None, Field(description="0…1")] = None
    guidance_interval: Annotated[
        list[float] | None, Field(description="Noise levels between which it acts: low, high")
    ] = None
    seed: Annotated[
        int | None,
        Field(description="Image k has seed + k; −1 for a random one, which the answer tells"),
    ] = None
    rng: Annotated[str | None, Field(description="philox or torch")] = None
    cache: Annotated[
        int | str | list[int] | None, Field(description="Evaluations between whole ones, or auto")
    ] = None
    clip_skip: Annotated[int | None, Field(description="As diffusers counts")] = None
    hires: Annotated[
        dict[str, _Value | _Own] | None,
        Field(description="What differs in a second pass: scale and others"),
    ] = None
    strength: Annotated[float | None, Field(description="How far from the image, 0…1")] = None
    denoise: Annotated[float | None, Field(description="The same as ComfyUI counts")] = None
    resize: Annotated[str | None, Field(description="crop, stretch, pad or latent")] = None
    mask_blur: float | None = None
    mask_margin: int | None = None
    outpaint: Annotated[list[int] | None, Field(description="left, top, right, bottom")] = None

    def parameters(self) -> dict[str, Any]:
        """Those of a Request that are given."""
        found = {name: getattr(self, name) for name in Drawing.model_fields}
        given = {name: value for name, value in found.items() if value is not None}
        if given.get("seed") == -1:
            del given["seed"]
        return given


class StrictRoute(APIRoute):
    """A route whose JSON has every name once, no NaN and no Infinity, and is not too deep."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return json.loads(body, object_pairs_hook=_once, parse_constant=_refused)
        except json.JSONDecodeError:
            raise
        except UnicodeDecodeError:
            raise HTTPException(400, "the body is no UTF-8") from None
        except _Doubtful as doubt:
            raise HTTPException(400, str(doubt)) from None
        except (RecursionError, ValueError):
            raise HTTPException(
                400, "the body is JSON that is too deep, or of too long numbers"
            ) from None


class _Doubtful(Exception):
    """JSON that two readers would read otherwise."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for k, (name, _) in enumerate(pairs) if name in dict(pairs[:k]))
        raise _Doubtful(f"the body has {twice[:60]!r} twice: say it once")
    return found


def _refused(name: str) -> Any:
    raise _Doubtful(f"the body has {name}, which is no JSON: give a number")
