"""What a request's run starts from: noise alone, or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from . import checks
from .bundle import Sizes
from .canvas import RESIZES, Canvas, canvas, opened
from .errors import InvalidRequest, nearest

if TYPE_CHECKING:
    from .request import Request

STRENGTH = 0.6  # of a picture that is redrawn in all of its parts
MOST_BLUR, MOST_PIXELS = 256, 4096
TILED = 8192  # pixels a side at most of a picture that is drawn from another, in tiles
SECOND_SCALE, SECOND_STRENGTH = 2.0, 0.5  # of a second pass
HIRES = (
    *("prompt", "negative_prompt", "steps", "sampler", "schedule", "sampler_parameters"),
    *("schedule_parameters", "guidance", "strength", "denoise", "resize", "cache"),
)
"""What a second pass may have otherwise than the first."""
_OF_IMAGE = ("strength", "denoise", "mask", "mask_margin", "outpaint")


@dataclass(frozen=True)
class Start:
    """width, height: pixels that are drawn
    canvas: that they are drawn on; None for noise alone
    strength: part of the steps that is taken, 0…1; None where the run has sigmas of its own
    denoise: part of a longer run that the steps are the last of
    """

    width: int
    height: int
    canvas: Canvas | None = None
    strength: float | None = None
    denoise: float | None = None

    @property
    def from_picture(self) -> bool:
        """Whether the picture is under the noise."""
        return self.canvas is not None and 1.0 not in (self.strength, self.denoise)

    @property
    def masked(self) -> bool:
        """Whether a part of it is redrawn."""
        return self.canvas is not None and self.canvas.mask is not None

    def taken(self, steps: int) -> int:
        """Of a run of as many steps those that are taken, from its end; 0 draws nothing."""
        if self.strength is None:
            return steps
        return min(steps, max(int(steps * self.strength), int(self.strength > 0)))


def start(given: Request, sizes: Sizes) -> Start:
    """The start of a request, whose width and height are None where they are open.

    Raises InvalidRequest.
    """
    if given.resize not in RESIZES:
        raise InvalidRequest(
            f"resize is {given.resize!r}{nearest(str(given.resize), RESIZES)}; it must be one of "
            + ", ".join(RESIZES)
        )
    blur = checks.number("mask_blur", given.mask_blur, 0, MOST_BLUR)
    if blur and given.mask is None and given.outpaint is None:
        raise InvalidRequest("mask_blur is about a mask: give mask too, or leave it out")
    if given.image is None:
        if alone := [name for name in _OF_IMAGE if getattr(given, name) is not None]:
            raise InvalidRequest(f"{alone[0]} is about an image: give image too, or leave it out")
        width = sizes.width if given.width is None else given.width
        height = sizes.height if given.height is None else given.height
        return Start(checks.side("width", width, sizes), checks.side("height", height, sizes))
    around = _sides(given.outpaint)
    image = opened("image", given.image)
    mask = None if given.mask is None else opened("mask", given.mask, "L")
    margin = given.mask_margin
    if margin is not None:
        margin = checks.whole("mask_margin", margin, 0, MOST_PIXELS)
        if mask is None and not any(around):
            raise InvalidRequest("mask_margin is about a mask: give mask too, or leave it out")
    own = (image.width + around[0] + around[2], image.height + around[1] + around[3])
    usual = (sizes.width, sizes.height) if margin is not None else _usual(own, sizes)
    if any(around) and margin is None:
        usual = own  # as it was asked for, or refused
    width = checks.side("width", usual[0] if given.width is None else given.width, sizes, TILED)
    height = checks.side("height", usual[1] if given.height is None else given.height, sizes, TILED)
    made = canvas(
        image,
        mask,
        (width, height),
        sizes.scale,
        resize=given.resize,
        blur=blur,
        margin=margin,
        outpaint=around,
    )
    return Start(width, height, made, *_parts(given, made))


def second_pass(given: Request, begin: Start, sizes: Sizes) -> Request | None:
    """The request of the second pass, from a picture of the first one's size; None for none.

    Raises InvalidRequest.
    """
    if given.hires is None:
        return None
    asked = checks.by_name("hires", given.hires)
    if odd := [name for name in asked if name not in ("scale", *HIRES)]:
        raise InvalidRequest(
            f"hires has {odd[0]!r}{nearest(odd[0], HIRES)}; it may have scale, {', '.join(HIRES)}"
        )
    if begin.masked:
        raise InvalidRequest("hires draws the whole picture anew: leave out mask and outpaint")
    scale = checks.number("hires scale", asked.pop("scale", SECOND_SCALE), 1, 8)
    width, height = (
        round(side * scale / sizes.multiple) * sizes.multiple
        for side in (begin.width, begin.height)
    )
    usual = {} if "denoise" in asked else {"strength": SECOND_STRENGTH}
    blank = Image.new("RGB", (begin.width, begin.height))
    over = {"resize": "stretch", **usual, **asked, "image": blank, "hires": None}
    if "sampler" in asked:
        over = {"sampler_parameters": {}, "discard_penultimate": None, **over}
    if "schedule" in asked:
        over = {"schedule_parameters": {}, **over}
    elif given.sigmas is not None:  # the first pass's own: here they are none but the bundle's
        over["schedule"] = None
    first = replace(given, strength=None, denoise=None, sigmas=None, width=width, height=height)
    return replace(first, **over)


def _parts(given: Request, made: Canvas) -> tuple[float | None, float | None]:
    """strength and denoise."""
    said = [n for n in ("strength", "denoise", "sigmas") if getattr(given, n) is not None]
    if len(said) > 1:
        raise InvalidRequest(
            f"{said[0]} and {said[1]} both say where the run starts: leave one of them out"
        )
    if given.denoise is not None:
        return None, checks.number("denoise", given.denoise, 0, 1)
    if given.sigmas is not None:
        return None, None
    usual = STRENGTH if made.mask is None else 1.0
    strength = usual if given.strength is None else given.strength
    return checks.number("strength", strength, 0, 1), None


def _usual(size: tuple[int, int], sizes: Sizes) -> tuple[int, int]:
    """The picture's own size, or where the bundle does not draw it the nearest in its ratio."""
    longer, shorter = max(size), min(size)
    fit = max(min(1.0, sizes.maximum / longer), sizes.minimum / shorter)
    width, height = (
        min(max(round(side * fit / sizes.multiple) * sizes.multiple, sizes.minimum), sizes.maximum)
        for side in size
    )
    return width, height


def _sides(value: object) -> tuple[int, int, int, int]:
    if value is None:
        return 0, 0, 0, 0
    if not isinstance(value, Sequence) or len(value) != 4:
        raise InvalidRequest(
            f"outpaint is {value!r}; it must be pixels on the left, top, right and bottom"
        )
    left, top, right, bottom = (checks.whole("outpaint", v, 0, MOST_PIXELS) for v in value)
    if not any((left, top, right, bottom)):
        raise InvalidRequest("outpaint is 0 on every side: leave it out")
    return left, top, right, bottom
