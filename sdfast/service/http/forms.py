"""The form of an edit: its fields, and its pictures, of which no name is heeded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from ...errors import InvalidRequest
from ..limits import Limits
from . import pictures
from .fields import Body

MOST_FILES, MOST_FIELDS = 17, 64
PICTURES = ("image", "image[]", "mask")
_JSON = ("hires", "sampler_parameters", "schedule_parameters", "nvext")
_LISTS = ("sigmas", "guidance_interval", "outpaint")
_B = TypeVar("_B", bound=Body)


async def read(request: Request, kind: type[_B], limits: Limits) -> tuple[_B, dict[str, Any]]:
    """The fields, and `image` and `mask` as pictures: without a mask the image's transparent part
    is it, where it has one. Raises RequestValidationError, InvalidRequest and TooLarge."""
    async with request.form(
        max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=4 * limits.prompt + 65536
    ) as form:
        fields = _fields(form)
        try:
            body = kind.model_validate(fields, strict=False)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        given = [file for name in ("image", "image[]") for file in form.getlist(name)]
        if len(given) != 1:
            raise InvalidRequest(f"image: {len(given)} are given; one is edited at a time")
        image = await _bytes(given[0])
        masks = form.getlist("mask")
        if len(masks) > 1:
            raise InvalidRequest("mask is given twice: once is enough")
        mask = (
            await pictures.read_mask("mask", await _bytes(masks[0]), limits)
            if masks
            else await pictures.read_transparency("image", image, limits)
        )
        found = {"image": await pictures.read("image", image, limits)}
        return body, found if mask is None else {**found, "mask": mask}


def schema(kind: type[Body]) -> dict[str, Any]:
    """Of the form, for OpenAPI."""
    said = kind.model_json_schema()
    picture = {"type": "string", "format": "binary"}
    properties = {"image": picture, "mask": picture, **said["properties"]}
    form = {**said, "properties": properties, "required": ["image", *said["required"]]}
    content = {"schema": form, "encoding": {n: {"contentType": "image/png"} for n in PICTURES[::2]}}
    return {"required": True, "content": {"multipart/form-data": content}}


def _fields(form: FormData) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in PICTURES:
            continue
        plain = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            raise InvalidRequest(f"{name[:60]!r} is a file; files are image and mask")
        if plain in _LISTS and name != plain:
            found.setdefault(plain, []).append(value)
            continue
        if plain in found:
            raise InvalidRequest(f"{name[:60]!r} is given twice: once is enough")
        found[plain] = _parsed(plain, value)
    return found


def _parsed(name: str, value: str) -> Any:
    """JSON, of fields that are no text."""
    if name not in (*_JSON, *_LISTS):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{name} is no JSON: write it as one") from None


async def _bytes(given: UploadFile | str) -> bytes | str:
    """A file's bytes, or the text that is base64."""
    return await given.read() if isinstance(given, UploadFile) else given
