"""A1111's masks: where they are white, and what is under them."""

from __future__ import annotations

from PIL import Image, ImageChops

from .. import pictures


def mask_of(picture: Image.Image, inverted: bool) -> Image.Image:
    """Mode L, 255 where a picture is redrawn: where a mask is white, or of one that is transparent
    somewhere where it is not."""
    clear = pictures.transparency(picture)
    found = pictures.seen(picture).convert("L") if clear is None else ImageChops.invert(clear)
    return ImageChops.invert(found) if inverted else found


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with what is under the mask in the colours from around it.

    The known pixels are averaged over ever larger squares, half the sides each time, until one is
    left; what a finer one lacks is then taken from the next coarser, from the last to the first.
    """
    hard = mask.resize(picture.size, Image.Resampling.NEAREST).point(lambda v: 255 * (v >= 128))
    finest = picture.convert("RGBA")
    finest.putalpha(ImageChops.invert(hard))
    levels = [finest]
    while max(levels[-1].size) > 1:
        width, height = ((side + 1) // 2 for side in levels[-1].size)
        averaged = levels[-1].convert("RGBa").resize((width, height), Image.Resampling.BOX)
        levels.append(averaged.convert("RGBA"))
    found = Image.new("RGBA", (1, 1), "grey")
    for level in reversed(levels):
        found = found.resize(level.size, Image.Resampling.BILINEAR)
        found.alpha_composite(level)
    return found.convert("RGB")
