"""POST png-info: what a picture says of how it was drawn."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from .... import images, infotext
from ...given import size_of
from .. import pictures

if TYPE_CHECKING:
    from ...limits import Limits

_LONGEST = 1 << 16  # characters of a text that is read


class Given(BaseModel):
    """What is sent."""

    image: str = Field(description="base64, alone or as a data URL")


def add(routes: APIRouter, limits: Limits) -> None:
    """The route."""

    @routes.post("/png-info")
    async def read(given: Given) -> dict[str, Any]:
        """The text that A1111 and sdfast write into their pictures, and its values."""
        return await asyncio.to_thread(told, given.image, limits)


def told(picture: str, limits: Limits) -> dict[str, Any]:
    """Of a picture, of which the header alone is read. Raises InvalidRequest or TooLarge."""
    data = pictures.decoded("image", picture, limits)
    size_of("image", data, limits)
    text = images.texts(io.BytesIO(data))[1]
    if not isinstance(text, str) or len(text) > _LONGEST:
        return {"info": "", "items": {}, "parameters": {}}
    return {"info": text, "items": {"parameters": text}, "parameters": infotext.words(text)}
