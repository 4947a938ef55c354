"""Previews: what a run would draw if it ended now, from the denoised latent of an evaluation.

Bundles with a preview_decoder (an AutoencoderTiny) have pictures of that; others a colour for each
latent, by the linear map that was fitted when they were exported, in less than a millisecond.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from PIL import Image

from . import images
from ._core import combine
from .bundle import Preview, Sizes
from .errors import BundleError, InvalidRequest
from .opened import Opened
from .tensors import Tensor

Draw = Callable[[Tensor], list[Image.Image]]
"""The previews of a denoised latent f32 [B, C, h, w] of the CPU."""
Show = Callable[[list[Image.Image], int, int | None], bool | None]
"""show(previews, done, evaluations), as a pipeline's callback; False cancels the run."""


def previewer(opened: Opened) -> Draw:
    """How the bundle draws previews. Raises BundleError where it cannot."""
    preview, sizes = opened.bundle.manifest.preview, opened.bundle.sizes
    if "preview_decoder" in opened:
        scale = (preview.scale if preview else None) or sizes.scale
        return lambda latent: decoded(opened, latent, scale)
    if preview is None:
        raise BundleError(
            f"bundle {opened.bundle.name} has nothing to draw previews by: export it again"
        )
    return lambda latent: linear(latent, preview, sizes)


def linear(latent: Tensor, preview: Preview, sizes: Sizes) -> list[Image.Image]:
    """By the linear map, one pixel a latent."""
    batch, channels, height, width = latent.shape
    if channels != sizes.channels:
        raise InvalidRequest(f"the latent has {channels} channels; the bundle's {sizes.channels}")
    side = height * width * 4  # bytes of a channel
    ones, colour = (Tensor.empty((height, width), "f32") for _ in range(2))
    memoryview(ones).cast("B").cast("f")[:] = array("f", [1.0]) * (height * width)
    pictures = []
    for image in range(batch):
        start = latent.pointer + image * channels * side
        planes = [
            Tensor.of_memory(start + channel * side, (height, width), "f32", latent)
            for channel in range(channels)
        ]
        bands = []
        for weights, bias in zip(preview.weights, preview.bias, strict=True):
            # Pillow leaves out what is behind the point.
            combine(colour, [*weights, bias + 0.5], [*planes, ones])
            floats = Image.frombytes("F", (width, height), bytes(memoryview(colour).cast("B")))
            bands.append(floats.convert("L"))
        pictures.append(Image.merge("RGB", bands))
    return pictures


def decoded(opened: Opened, latent: Tensor, scale: int) -> list[Image.Image]:
    """By the network preview_decoder, `scale` pixels a side of a latent."""
    batch, _, height, width = latent.shape
    pixels = Tensor.empty((batch, height * scale, width * scale, 3), "u8")
    engine = opened.on_the_host("preview_decoder")
    engine.bind({"latent": latent, "image": pixels})
    engine.run()
    return images.from_pixels(pixels)


def every(
    evaluations: int, draw: Draw, show: Show
) -> Callable[[int, int | None, Tensor], bool | None]:
    """The callback(done, evaluations, denoised) that shows the previews of every so many
    evaluations, but not of the last, which the picture itself follows.

    Raises InvalidRequest for a number below 1.
    """
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
        raise InvalidRequest(
            f"preview_every is {evaluations!r}; it must be a whole number of evaluations, 1 or more"
        )

    def callback(done: int, of: int | None, denoised: Tensor) -> bool | None:
        if done % evaluations or done == of:
            return None
        return show(draw(denoised), done, of)

    return callback


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Previews of one run as one picture."""
    width = sum(picture.width for picture in pictures)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)))
    x = 0
    for picture in pictures:
        row.paste(picture, (x, 0))
        x += picture.width
    return row
