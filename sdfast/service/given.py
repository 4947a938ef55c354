"""What a request brings, checked before anything is done with it: nothing in it may name a file or
anything else of the machine, or be large beyond the limits."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image, UnidentifiedImageError

from .. import prompts
from ..bundle import Bundle
from ..errors import InvalidRequest, nearest
from ..request import Request
from .limits import Limits
from .refusals import TooLarge

Names = Callable[[], Collection[str]]
FORMATS = ("PNG", "JPEG", "WEBP")
_DATA = "data:image/"


def checked(
    request: Request, limits: Limits, controls: Mapping[str, Bundle], loras: Names | None
) -> Request:
    """The request with its pictures as data URLs.

    controls: the ControlNets that are served, by name; loras: the LoRA that prompts may
        name, None where they may name none
    Raises InvalidRequest and TooLarge.
    """
    _bounded(request, limits)
    second = request.hires if isinstance(request.hires, Mapping) else {}
    for text in (request.prompt, second.get("prompt")):
        if isinstance(text, str):
            _named(text, loras)
    return replace(
        request,
        image=_picture("image", request.image, limits),
        mask=_picture("mask", request.mask, limits),
        control=_steered(request.control, limits, controls),
    )


def _named(text: str, known: Names | None) -> None:
    """Raises InvalidRequest for a prompt with a LoRA that it may not name."""
    for lora in prompts.parse(text).loras:
        where = f"the prompt, column {lora.column}"
        if known is None:
            raise InvalidRequest(
                f"{where}: this service draws without LoRA: leave out <lora:{lora.name}:…>"
            )
        if lora.name not in (names := known()):  # which tells no folder, as the worker would
            raise InvalidRequest(
                f"{where}: there is no LoRA {lora.name!r}{nearest(lora.name, names)}"
            )


def _bounded(request: Request, limits: Limits) -> None:
    second = request.hires if isinstance(request.hires, Mapping) else {}
    texts = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "hires prompt": second.get("prompt"),
        "hires negative_prompt": second.get("negative_prompt"),
    }
    for name, text in texts.items():
        if isinstance(text, str) and len(text) > limits.prompt:
            raise TooLarge(
                f"{name} has {len(text)} characters; {limits.prompt} are allowed: say it shorter"
            )
        if isinstance(text, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
            raise InvalidRequest(f"{name} has characters that are no text (NUL, lone surrogates)")
    sigmas = request.sigmas if isinstance(request.sigmas, Sequence) else ()
    for name, number, most in (
        ("steps", request.steps, limits.steps),
        ("hires steps", second.get("steps"), limits.steps),
        ("steps", len(sigmas) - 1, limits.steps),
        ("count", request.count, limits.images),
    ):
        if isinstance(number, int) and number > most:
            raise InvalidRequest(f"{name} is {number}; this service allows up to {most}")


def size_of(name: str, data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height of an encoded picture, by its header: nothing is decoded.

    Raises InvalidRequest for what is no picture of FORMATS, or several in one, and TooLarge.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as found:
            width, height = found.size
            several = getattr(found, "n_frames", 1) > 1
    except Image.DecompressionBombError:
        raise TooLarge(
            f"{name} has far too many pixels; {limits.input_pixels} are allowed: make it smaller"
        ) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise InvalidRequest(
            f"{name} is no picture that can be read: send a PNG, JPEG or WebP"
        ) from None
    if several:
        raise InvalidRequest(f"{name} is animated: send a picture of one frame")
    _small_enough(name, (width, height), limits)
    return width, height


def _small_enough(name: str, size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.input_pixels:
        raise TooLarge(
            f"{name} is {width}×{height}; {limits.input_pixels} pixels are allowed: make it smaller"
        )


def data_url(data: bytes) -> str:
    """Of an encoded picture, which says itself of what format it is."""
    return f"{_DATA}png;base64,{base64.b64encode(data).decode()}"


def _picture(name: str, value: object, limits: Limits) -> str | None:
    if value is None:
        return None
    if isinstance(value, Image.Image):
        _small_enough(name, value.size, limits)
        buffer = io.BytesIO()
        value.save(buffer, "PNG", compress_level=1)
        return data_url(buffer.getvalue())
    if not isinstance(value, str) or not value.startswith(_DATA):
        raise InvalidRequest(f"{name} must be a picture, or one as a data URL (data:image/png;…)")
    head, mark, encoded = value.partition(";base64,")
    try:
        if not mark or len(head) > 64:
            raise ValueError
        data = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        raise InvalidRequest(f"{name} is no base64 (data:image/png;base64,…)") from None
    size_of(name, data, limits)
    return value


def _steered(given: object, limits: Limits, known: Mapping[str, Bundle]) -> Any:
    if given is None:
        return None
    several = [given] if isinstance(given, Mapping) else given
    if not isinstance(several, Sequence) or isinstance(several, str):
        return given  # which the request's own check refuses
    found = list[Any]()
    for one in several:
        if not isinstance(one, Mapping):
            return given
        name = one.get("bundle")
        if name not in known:
            raise InvalidRequest(
                f"control's bundle {name!r} is not served{nearest(str(name), known)}; known: "
                f"{', '.join(known) or 'none'}"
            )
        maps = one.get("image")
        several_maps = list(maps) if isinstance(maps, list | tuple) else [maps]
        pictures = [_picture("control's image", one, limits) for one in several_maps]
        image = pictures if isinstance(maps, list | tuple) else pictures[0]
        found.append({**one, "image": image})
    return tuple(found)
