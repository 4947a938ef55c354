"""Pictures that come with requests, checked before they are decoded, and those that go.

A picture may be PNG, JPEG or WebP with one frame; its sides are read from its header, before
memory is taken for its pixels. It becomes what a person sees: upright, eight bits a channel, white
where it is transparent.
"""

from __future__ import annotations

import asyncio
import binascii
import io
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image, ImageOps

from ... import __version__, images
from ...errors import InvalidRequest
from ..jobs import Outcome
from ..limits import Limits
from ..refusals import TooLarge

TYPES = {"png": "image/png", "jpeg": "image/jpeg", "jpg": "image/jpeg", "webp": "image/webp"}
_FORMATS = ("PNG", "JPEG", "WEBP")
_PIECE = 1 << 18  # characters of base64 that are decoded at a time: others have their turn between
_COMPRESSION = 1  # of PNG: that of the command line's files takes longer than a step
_SPACES = bytes(range(33))
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


async def read(name: str, given: str | bytes, limits: Limits) -> Image.Image:
    """The picture, RGB, of base64 (bare or a data URL) or of a file's bytes, in a thread.

    name: what messages call it. Raises InvalidRequest, or TooLarge.
    """
    return await asyncio.to_thread(lambda: seen(opened(name, given, limits)))


async def read_mask(name: str, given: str | bytes, limits: Limits) -> Image.Image:
    """The same of a mask, mode L, white where it is redrawn: of a picture that is transparent
    somewhere that is where it is so, as OpenAI has it; of others where they are white."""

    def mask() -> Image.Image:
        found = opened(name, given, limits)
        return transparency(found) or seen(found).convert("L")

    return await asyncio.to_thread(mask)


async def read_transparency(name: str, given: str | bytes, limits: Limits) -> Image.Image | None:
    """The same where a picture is its own mask; None where it is opaque."""
    return await asyncio.to_thread(lambda: transparency(opened(name, given, limits)))


def opened(name: str, given: str | bytes, limits: Limits) -> Image.Image:
    """The picture as it came, upright, decoded to its last pixel."""
    data = given if isinstance(given, bytes) else decoded(name, given, limits)
    if not data:
        raise InvalidRequest(f"{name} is empty: give a PNG, JPEG or WebP picture")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            pixels, frames = picture.width * picture.height, getattr(picture, "n_frames", 1)
            if pixels > limits.input_pixels:
                raise TooLarge(
                    f"{name} is {picture.width}×{picture.height} pixels; "
                    f"{limits.input_pixels} pixels are allowed: give a smaller one"
                )
            if frames != 1:
                raise InvalidRequest(f"{name} has {frames} frames: give a picture with one")
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (InvalidRequest, TooLarge):
        raise
    except Image.DecompressionBombError:
        raise TooLarge(f"{name} has more pixels than are allowed: give a smaller one") from None
    except Exception:  # whatever a decoder stumbles over is no reason to tell its words
        raise InvalidRequest(
            f"{name} is no picture that can be read: give a whole PNG, JPEG or WebP file"
        ) from None


def seen(picture: Image.Image) -> Image.Image:
    """A picture as a person sees it, RGB."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        wide = picture.convert("F") if picture.mode == "F" else picture.convert("I").convert("F")
        return wide.point(lambda value: value / 256).convert("L").convert("RGB")
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return picture.convert("RGB")


def transparency(picture: Image.Image) -> Image.Image | None:
    """Mode L, 255 where a picture is transparent; None where it has no alpha or is opaque."""
    if not picture.has_transparency_data:
        return None
    alpha = picture.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha.point(lambda value: 255 - value)


def decoded(name: str, text: str, limits: Limits) -> bytes:
    """The bytes of base64, standard or URL-safe, wrapped or not, with or without padding, bare or
    as a data URL. Raises InvalidRequest, or TooLarge."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidRequest(f"{name} is a data URL of another kind than base64")
    if len(text) > 4 * limits.body / 3 + 4:
        raise TooLarge(f"{name} is larger than {limits.body} bytes: give a smaller one")
    try:
        raw = text.encode("ascii").translate(_URL_SAFE, _SPACES)
        raw = raw.rstrip(b"=")
        raw += b"=" * (-len(raw) % 4)
        parts = (raw[at : at + _PIECE] for at in range(0, len(raw), _PIECE))
        return b"".join(binascii.a2b_base64(part, strict_mode=True) for part in parts)
    except ValueError:  # UnicodeEncodeError and binascii.Error are
        raise InvalidRequest(f"{name} is not base64: give a picture's bytes so encoded") from None


async def encoded(outcome: Outcome, form: str = "png", quality: int = 95) -> list[bytes]:
    """Its pictures as files with the metadata of sdfast/images.py, in a thread. form: one of
    TYPES; quality: 0…100, of JPEG and WebP."""
    return await asyncio.to_thread(lambda: _files(outcome, form, quality))


async def previews(
    shown: Sequence[Image.Image], form: str = "png", size: tuple[int, int] | None = None
) -> list[str]:
    """Previews as base64, of a size where one is given, in a thread."""
    return await asyncio.to_thread(lambda: as_base64([_preview(p, form, size) for p in shown]))


def _preview(picture: Image.Image, form: str, size: tuple[int, int] | None) -> bytes:
    shown = picture.resize(size, Image.Resampling.BILINEAR) if size else picture
    buffer = io.BytesIO()
    shown.save(buffer, images.FORMATS[form], compress_level=_COMPRESSION)
    return buffer.getvalue()


def _files(outcome: Outcome, form: str, quality: int) -> list[bytes]:
    singles = (replace(outcome.request, seed=seed, count=1) for seed in outcome.seeds)
    return [
        images.encode(
            image,
            form,
            single,
            outcome.model,
            __version__,
            quality=quality,
            compression=_COMPRESSION,
        )
        for image, single in zip(outcome.images, singles, strict=True)
    ]


def as_base64(files: Sequence[bytes]) -> list[str]:
    return [binascii.b2a_base64(file, newline=False).decode() for file in files]
