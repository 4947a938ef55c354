"""Canvases: what becomes of the picture and the mask that a request brings, before the networks and
after. All of it is Pillow's; sizes are (width, height) in pixels.
"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

from .errors import InvalidRequest

RESIZES = ("crop", "stretch", "pad", "latent")
"""How a picture of another size is made to fit: its middle is cut out, it is stretched, or bands in
its borders' colours are put beside it, all by Lanczos' filter; or it is stretched as latents."""
READ = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Forms of pictures that are read: of those that Pillow knows some run other programs."""
_DATA, _DIGEST = "data:image/", "sha256:"
_SMOOTH = Image.Resampling.LANCZOS

Size = tuple[int, int]
Sides = tuple[int, int, int, int]  # left, top, right, bottom


def opened(name: str, value: object, mode: str = "RGB") -> Image.Image:
    """The picture that a request's value is: a Pillow picture, a file's path, or a data URL.

    Raises InvalidRequest, which says `name`.
    """
    try:
        if isinstance(value, Image.Image):
            found = value
        elif isinstance(value, str) and value.startswith(_DIGEST):
            raise InvalidRequest(
                f"{name} was a picture in memory, of which the digest alone is left: give it again"
            )
        elif isinstance(value, str) and value.startswith(_DATA):
            encoded = value.partition(";base64,")[2]
            data = io.BytesIO(base64.b64decode(encoded, validate=True))
            found = Image.open(data, formats=READ)
        elif isinstance(value, str | Path):
            found = Image.open(value, formats=READ)
        else:
            raise InvalidRequest(
                f"{name} is {type(value).__name__}; it must be a picture's path, a Pillow picture "
                "or a data URL"
            )
        return _eight_bits(ImageOps.exif_transpose(found)).convert(mode)
    except UnidentifiedImageError:
        raise InvalidRequest(
            f"{name} {_said(value)} is no picture that can be read: give one of {', '.join(READ)}"
        ) from None
    except InvalidRequest:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{name} {_said(value)} cannot be read ({reason})") from None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits, as depth maps have it, in 8: Pillow would make all above 255 white."""
    if not picture.mode.startswith("I;16"):
        return picture
    return picture.convert("I").point(lambda level: level * (1 / 257) + 0.5).convert("L")


def told(value: Any) -> Any:
    """A picture as a request's JSON has it: its path, or of one in memory or a data URL a digest,
    which says whether another is the same."""
    if isinstance(value, str) and value.startswith(_DATA):
        return f"{_DIGEST}{hashlib.sha256(value.encode()).hexdigest()}"
    if not isinstance(value, Image.Image):
        return None if value is None else str(value)
    form = f"{value.mode} {value.size}".encode()
    return f"{_DIGEST}{hashlib.sha256(form + value.tobytes()).hexdigest()}"


@dataclass(frozen=True)
class Canvas:
    """What a request draws on.

    picture: RGB, as it is encoded: of the size that is drawn, or of its own where its latents are
        resized
    mask: mode L, of the size that is drawn, 255 where it is redrawn; None for everywhere
    base: RGB, the picture that parts are put back into
    box: where in `base` what is drawn belongs
    paste: mode L, of the box's size: what of a pixel is the drawn one
    """

    picture: Image.Image
    mask: Image.Image | None
    base: Image.Image
    box: Sides
    paste: Image.Image | None

    def untouched(self, size: Size) -> Image.Image:
        """The result where nothing is drawn."""
        return self.base if self.mask else scaled(self.base, size)

    def finished(self, drawn: Image.Image) -> Image.Image:
        """The result: with a mask `base`, whose pixels outside of it are as they were."""
        if self.paste is None:
            return drawn
        whole = self.base.copy()
        if drawn.size != self.paste.size:
            drawn = drawn.resize(self.paste.size, _SMOOTH)
        whole.paste(drawn, self.box[:2], self.paste)
        return whole


def canvas(
    picture: Image.Image,
    mask: Image.Image | None,
    size: Size,
    scale: int,
    *,
    resize: str = "crop",
    blur: float = 0.0,
    margin: int | None = None,
    outpaint: Sides = (0, 0, 0, 0),
) -> Canvas:
    """The canvas of a picture and its mask, which is white where it is redrawn.

    size: that is drawn; scale: pixels a side of a latent
    resize: one of RESIZES
    blur: pixels over which the drawn part fades in, inside of the mask
    margin: where given, only the part of the picture around the mask, with as many pixels around
        it, is drawn, at `size`, and put back into the picture as it was
    outpaint: pixels that are put around the picture first, and redrawn
    Raises InvalidRequest for a mask that is empty or of other sides than the picture's.
    """
    if mask is not None and _unlike(mask.size, picture.size):
        raise InvalidRequest(
            f"mask is {mask.width}×{mask.height}; it must have the sides of image, "
            f"{picture.width}×{picture.height}, or be in their ratio"
        )
    if mask is not None:
        mask = _hard(mask.resize(picture.size, Image.Resampling.NEAREST))
    if any(outpaint):
        picture, mask = _padded(picture, mask, outpaint)
    if mask is None:
        if resize == "latent":
            own = [max(scale, round(side / scale) * scale) for side in picture.size]
            shown = fitted(picture, (own[0], own[1]), "stretch", _SMOOTH)
        else:
            shown = fitted(picture, size, resize, _SMOOTH)
        return Canvas(shown, None, shown, (0, 0, *shown.size), None)
    inner = mask.getbbox()
    if inner is None:
        raise InvalidRequest("the mask is black everywhere: paint white what is to be redrawn")
    if margin is None:
        how = "stretch" if resize == "latent" else resize
        base = fitted(picture, size, how, _SMOOTH)
        mask = fitted(mask, size, how, Image.Resampling.NEAREST)
        return Canvas(base, mask, base, (0, 0, *size), _faded(mask, blur))
    box = _around(inner, margin, size, picture.size)
    part = mask.crop(box)
    drawn = part.resize(size, Image.Resampling.NEAREST)
    return Canvas(picture.crop(box).resize(size, _SMOOTH), drawn, picture, box, _faded(part, blur))


def latent_mask(mask: Image.Image, scale: int) -> Image.Image:
    """The mask in latents of `scale` pixels a side: 255 for all that have a pixel of it."""
    return mask.reduce(scale).point(lambda value: 255 * (value > 0))


def without(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture grey where it is redrawn, as networks for inpainting are shown it."""
    return Image.composite(Image.new("RGB", picture.size, (128, 128, 128)), picture, mask)


def _said(value: object) -> str:
    text = str(value)
    return f"{text[:57]}…" if len(text) > 60 else text


def _unlike(a: Size, b: Size) -> bool:
    """Whether two sizes are not of one ratio, to a pixel."""
    return abs(a[0] * b[1] - b[0] * a[1]) > max(*a, *b)


def _hard(mask: Image.Image) -> Image.Image:
    return mask.point(lambda value: 255 * (value >= 128))


def _padded(
    picture: Image.Image, mask: Image.Image | None, sides: Sides
) -> tuple[Image.Image, Image.Image]:
    left, top, right, bottom = sides
    size = picture.width + left + right, picture.height + top + bottom
    over = Image.new("L", size, 255)
    over.paste(mask or Image.new("L", picture.size, 0), (left, top))
    return _surrounded(picture, size, (left, top)), over


def _surrounded(picture: Image.Image, size: Size, at: tuple[int, int]) -> Image.Image:
    """A picture of that size with this one in it, and its borders' pixels carried on around it."""
    (left, top), (width, height) = at, picture.size
    corners = (-left, -top, size[0] - left, size[1] - top)
    columns = [min(max(x, 0), width - 1) for x in range(corners[0], corners[2])]
    rows = [min(max(y, 0), height - 1) for y in range(corners[1], corners[3])]
    whole = Image.new(picture.mode, size)
    whole.paste(picture, at)
    for side, box in (
        ((0, top), (0, top, left, top + height)),
        ((left + width, top), (left + width, top, size[0], top + height)),
    ):
        if box[2] > box[0]:
            column = picture.crop((columns[box[0]], 0, columns[box[0]] + 1, height))
            whole.paste(column.resize((box[2] - box[0], height)), side)
    for start, stop in ((0, top), (top + height, size[1])):
        if stop > start:
            line = top + rows[start]
            row = whole.crop((0, line, size[0], line + 1))
            whole.paste(row.resize((size[0], stop - start)), (0, start))
    return whole


def scaled(picture: Image.Image, size: Size) -> Image.Image:
    """The same picture, of that size."""
    return picture.resize(size, _SMOOTH)


def fitted(picture: Image.Image, size: Size, resize: str, by: Image.Resampling) -> Image.Image:
    if picture.size == size:
        return picture
    if resize == "stretch":
        return picture.resize(size, by)
    if resize == "crop":
        return ImageOps.fit(picture, size, by)
    inside = ImageOps.contain(picture, size, by)
    at = (size[0] - inside.width) // 2, (size[1] - inside.height) // 2
    return _surrounded(inside, size, at)


def _faded(mask: Image.Image, blur: float) -> Image.Image:
    """0 outside of the mask, and inside of it rising to 255 within `blur` pixels of its border."""
    if blur == 0:
        return mask
    soft = mask.filter(ImageFilter.GaussianBlur(blur / 2))
    return ImageChops.darker(mask, soft.point(lambda value: max(0, 2 * value - 255)))


def _around(inner: Sides, margin: int, size: Size, whole: Size) -> Sides:
    """The box of `inner` with the margin around it, in the ratio of `size` as far as the picture
    goes, and inside of it."""
    left, top, right, bottom = inner
    left, top = max(0, left - margin), max(0, top - margin)
    right, bottom = min(whole[0], right + margin), min(whole[1], bottom + margin)
    width, height = right - left, bottom - top
    if width * size[1] < height * size[0]:
        width = min(whole[0], round(height * size[0] / size[1]))
    else:
        height = min(whole[1], round(width * size[1] / size[0]))
    left = min(max(0, (left + right - width) // 2), whole[0] - width)
    top = min(max(0, (top + bottom - height) // 2), whole[1] - height)
    return left, top, left + width, top + height
