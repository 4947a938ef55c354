"""Pixels → PNG, JPEG or WebP that remember how they were made, and back.

PNG files carry two text chunks: `parameters`, the line that A1111 introduced and other programs
read, and `sdfast`, the full request as JSON. JPEG and WebP carry the same two in EXIF (UserComment
and ImageDescription).
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from .errors import InvalidRequest
from .request import Request
from .tensors import Tensor

FORMATS = {"png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP"}
_USER_COMMENT, _IMAGE_DESCRIPTION, _EXIF = 0x9286, 0x010E, 0x8769
_KEY = "sdfast"


def from_pixels(pixels: Tensor) -> list[Image.Image]:
    """u8 [B, H, W, 3] as B pictures, each with memory of its own."""
    batch, height, width, _ = pixels.shape
    data = memoryview(pixels).cast("B")
    size = height * width * 3
    return [
        Image.frombytes("RGB", (width, height), data[k * size : (k + 1) * size])
        for k in range(batch)
    ]


def stem(prompt: str) -> str:
    """The prompt's words as the beginning of a file's name."""
    words = "".join(c if c.isalnum() else "-" for c in prompt.lower())
    return "-".join(filter(None, words.split("-")))[:60].rstrip("-")


def whole(file: Path) -> bool:
    """Whether a file is there and a picture to its last pixel."""
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError):  # so Pillow calls a bad chunk
        return False
    return True


def encode(
    image: Image.Image, form: str, request: Request, model: str, version: str, quality: int = 95
) -> bytes:
    """The file's bytes with the request in them. `form`: png, jpeg, jpg or webp; quality: 0…100,
    of all but PNG."""
    if form not in FORMATS:
        raise InvalidRequest(f"format {form!r} is unknown; use one of {', '.join(FORMATS)}")
    line = parameters(request, model, version)
    full = json.dumps({"request": request.to_dict(), "model": model, "version": version})
    buffer = io.BytesIO()
    if FORMATS[form] == "PNG":
        info = PngInfo()
        info.add_itxt("parameters", line)
        info.add_itxt(_KEY, full)
        image.save(buffer, "PNG", pnginfo=info)
    else:
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = json.dumps(json.loads(full), ensure_ascii=True)
        exif.get_ifd(_EXIF)[_USER_COMMENT] = b"UNICODE\0" + line.encode("utf-16-be")
        image.save(buffer, FORMATS[form], quality=quality, exif=exif)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """The file's bytes, of a picture that no request drew."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def parameters(request: Request, model: str, version: str) -> str:
    """The request in the text form that A1111 writes into its pictures."""
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    rescale = f"CFG rescale: {request.guidance_rescale:g}, " if request.guidance_rescale else ""
    low_high = "-".join(f"{sigma:g}" for sigma in request.guidance_interval or ())
    interval = f"CFG interval: {low_high}, " if low_high else ""
    cache = f"Cache: {_quoted(request.cache)}, " if request.cache != 1 else ""
    own = {**request.sampler_parameters, **request.schedule_parameters}
    if request.sigmas is not None:
        own["sigmas"] = request.sigmas
    extra = "".join(f"{name}: {_quoted(value)}, " for name, value in own.items())
    return (
        f"{request.prompt}{negative}\nSteps: {request.steps}, Sampler: {request.sampler}, "
        f"Schedule type: {request.schedule}, CFG scale: {request.guidance:g}, "
        f"{rescale}{interval}{cache}{extra}"
        f"Seed: {request.seed}, Size: {request.width}x{request.height}, "
        f"Model: {model}, RNG: {request.rng}, Version: sdfast {version}"
    )


def _quoted(value: Any) -> str:
    """A value of the line, which is split at commas: quoted where it has some."""
    text = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
    return json.dumps(text) if "," in text else text


def read_request(file: Path) -> tuple[Request, str]:
    """The request that a picture made by sdfast carries, and the name of its bundle.

    Raises InvalidRequest when the file is missing, no picture, or carries none.
    """
    try:
        with Image.open(file) as image:
            text: Any = image.info.get(_KEY) or image.getexif().get(_IMAGE_DESCRIPTION)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"{file} cannot be read as a picture ({error})") from error
    try:
        carried = json.loads(text)
        return Request.from_dict(carried["request"]), str(carried["model"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(
            f"{file} carries no request of sdfast: only pictures that sdfast wrote can be repeated"
        ) from error
