"""Pixels → PNG, JPEG or WebP that remember how they were made, and back.

PNG files carry two text chunks: `parameters`, the text that A1111 introduced and other programs
read (`infotext`), and `sdfast`, JSON of the full request, the pixels' digest and what drew them
(`provenance`). JPEG and WebP carry the same two in EXIF (UserComment and ImageDescription).
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import infotext
from .canvas import told
from .errors import InvalidRequest
from .provenance import Provenance
from .records import parsed
from .request import Request
from .tensors import Tensor

FORMATS = {"png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP"}
_USER_COMMENT, _IMAGE_DESCRIPTION, _EXIF = 0x9286, 0x010E, 0x8769
_LONGEST_EXIF = 65533  # bytes, of a JPEG's segment
_UNICODE = b"UNICODE\0"
_KEY, _LINE = "sdfast", "parameters"
_LOSSY = ("JPEG", "WEBP")


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
    image: Image.Image,
    form: str,
    request: Request,
    model: str,
    version: str,
    made: Provenance | None = None,
    *,
    quality: int = 95,
    compression: int = 6,
) -> bytes:
    """The file's bytes with the request in them.

    form: png, jpeg, jpg or webp
    made: how it was drawn, for those who want to compare; it names the machine
    quality: 0…100, of JPEG and WebP; compression: 0…9, of PNG: 1 takes a fifth of the time of 6
        for files a third larger
    """
    if form not in FORMATS:
        raise InvalidRequest(f"format {form!r} is unknown; use one of {', '.join(FORMATS)}")
    line = infotext.write(request, model, version)
    said = {"request": request.to_dict(), "model": model, "version": version}
    kept = {} if made is None else {"made": made.to_dict()}
    full = json.dumps({**said, "pixels": told(image), **kept})
    buffer = io.BytesIO()
    if FORMATS[form] == "PNG":
        info = PngInfo()
        info.add_itxt(_LINE, line)
        info.add_itxt(_KEY, full)
        image.save(buffer, "PNG", pnginfo=info, compress_level=compression)
    else:
        image.save(buffer, FORMATS[form], quality=quality, exif=_exif(full, line))
    return buffer.getvalue()


def _exif(full: str, line: str) -> Image.Exif:
    """Both texts; where they are too long for EXIF the full request alone, or none."""
    exif = Image.Exif()
    for text in (full, ""):
        exif[_IMAGE_DESCRIPTION] = text
        exif.get_ifd(_EXIF)[_USER_COMMENT] = _UNICODE + line.encode("utf-16-be")
        if len(exif.tobytes()) <= _LONGEST_EXIF:
            return exif
        del exif.get_ifd(_EXIF)[_USER_COMMENT]
        if len(exif.tobytes()) <= _LONGEST_EXIF:
            return exif
    return Image.Exif()


def png(image: Image.Image) -> bytes:
    """The file's bytes, of a picture that no request drew."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Carried:
    """What a picture of sdfast says of itself.

    model: the name of its bundle; version: of sdfast
    pixels: their digest, as `canvas.told` tells it; made: how it was drawn. Both are None in files
        of before they were written
    lossy: the file's format where it does not keep pixels as they were, as "JPEG"
    """

    request: Request
    model: str
    version: str
    pixels: str | None
    made: Provenance | None
    lossy: str | None


def read(file: Path) -> Carried:
    """What a picture made by sdfast carries.

    Raises InvalidRequest when the file is missing, no picture, or carries nothing.
    """
    own, _, form = texts(file)
    said, request, model = _said(file, own)
    try:
        made = said.get("made")
        found = None if made is None else Provenance.from_dict(made)
        pixels = parsed(str | None, said.get("pixels"), "pixels")
    except ValueError as error:
        raise InvalidRequest(
            f"what {file} says of how it was drawn is damaged or of a newer sdfast ({error})"
        ) from error
    version = str(said.get("version"))
    return Carried(request, model, version, pixels, found, form if form in _LOSSY else None)


def read_request(file: Path) -> tuple[Request, str]:
    """The request that a picture of sdfast or A1111 carries, and the name of its bundle, which is
    empty where it is not told.

    Raises InvalidRequest when the file is missing, no picture, or carries none.
    """
    own, line, _ = texts(file)
    if own is None and line is not None:
        told_by_others = infotext.read(line)
        return told_by_others.request(), told_by_others.model
    _, request, model = _said(file, own)
    return request, model


def _said(file: Path, own: Any) -> tuple[dict[str, Any], Request, str]:
    """What the JSON of sdfast says, its request, and the name of its bundle."""
    try:
        said = json.loads(own)
        return said, Request.from_dict(said["request"]), str(said["model"])
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(
            f"{file} carries no request of sdfast: only pictures that sdfast wrote can be repeated"
        ) from error


def texts(file: Path | BinaryIO) -> tuple[Any, str | None, str | None]:
    """The JSON of sdfast, the text of A1111's form, and the file's format."""
    try:
        with Image.open(file) as image:
            exif = image.getexif()
            own: Any = image.info.get(_KEY) or exif.get(_IMAGE_DESCRIPTION)
            line = image.info.get(_LINE) or _comment(exif.get_ifd(_EXIF).get(_USER_COMMENT))
            return own, line, image.format
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"{file} cannot be read as a picture ({error})") from error


def _comment(comment: object) -> str | None:
    """A UserComment of EXIF that says in its first eight bytes how it is written."""
    if not isinstance(comment, bytes) or not comment.startswith(_UNICODE):
        return None
    return comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")
