"""From pictures to what a run starts from: latents, masks, and what a network for inpainting reads
beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from . import tiling
from ._core import combine
from .canvas import latent_mask, scaled, without
from .opened import Opened
from .redrawing import Redrawn
from .request import Resolved
from .tensors import Tensor


class Encoder:
    """The network vae_encoder of a bundle.

    tile: pixels a side of the parts that it encodes, as `tiling.grid` takes it
    """

    def __init__(self, opened: Opened, tile: int | None) -> None:
        self._opened, self._tile = opened, tile

    def start(self, request: Resolved) -> Redrawn | None:
        """What a request's run starts from, one row for all of its images; None for noise alone."""
        canvas, found = request.canvas, None
        if canvas is not None and (request.from_picture or request.blended):
            latents = resized(self.latents(canvas.picture), self._sides(request))
            mask = None if canvas.mask is None else self._mask(canvas.mask)
            found = Redrawn(latents, mask, fresh=not request.from_picture)
        return self._shown(found, request)

    def again(
        self, request: Resolved, first: Sequence[Image.Image] | Sequence[Tensor]
    ) -> Redrawn | None:
        """What a second pass starts from: a row for each of the first one's pictures, or of its
        latents."""
        size = request.width, request.height
        found = [
            self.latents(scaled(one, size))
            if isinstance(one, Image.Image)
            else resized(one, self._sides(request))
            for one in first
        ]
        return self._shown(Redrawn(joined(found), fresh=not request.from_picture), request)

    def latents(self, picture: Image.Image) -> Tensor:
        """The latents f32 [1, C, h, w] of a picture: the mean of what the encoder says, not a draw,
        so that they are the same for every seed."""
        manifest, sizes = self._opened.bundle.manifest, self._opened.bundle.sizes
        width, height = picture.size
        pixels = Tensor.empty((1, height, width, 3), "u8")
        memoryview(pixels).cast("B")[:] = picture.tobytes()
        shape = (1, sizes.channels, height // sizes.scale, width // sizes.scale)
        mean, logvar = Tensor.empty(shape, "f32"), Tensor.empty(shape, "f32")
        tensors = {"image": pixels, "mean": mean, "logvar": logvar}
        encoder = self._opened.on_the_host("vae_encoder")
        tiling.run(encoder, tensors, tiling.grid(height, width, self._tile, sizes))
        combine(mean, [manifest.latent_scale], [mean])
        return mean

    def _shown(self, redrawn: Redrawn | None, request: Resolved) -> Redrawn | None:
        """The same with what a network for inpainting reads: the mask, and the latents of the
        picture without what it covers. Without a mask that is everything."""
        if self._opened.bundle.manifest.task != "inpaint":
            return redrawn
        size, canvas = (request.width, request.height), request.canvas
        mask = canvas.mask if canvas is not None else None
        picture = canvas.picture if canvas is not None and mask else Image.new("RGB", size)
        mask = mask or Image.new("L", size, 255)
        rest, over = self.latents(without(picture, mask)), self._mask(mask)
        beside = Tensor.empty((1, 1 + rest.shape[1], *rest.shape[2:]), "f32")
        memoryview(beside).cast("B")[: over.nbytes] = memoryview(over).cast("B")
        memoryview(beside).cast("B")[over.nbytes :] = memoryview(rest).cast("B")
        return replace(redrawn or Redrawn(rest, fresh=True), beside=beside)

    def _mask(self, mask: Image.Image) -> Tensor:
        """f32 [1, 1, h, w], 0 … 1."""
        units = latent_mask(mask, self._opened.bundle.sizes.scale).point(lambda v: v / 255, "F")
        made = Tensor.empty((1, 1, units.height, units.width), "f32")
        memoryview(made).cast("B")[:] = units.tobytes()
        return made

    def _sides(self, request: Resolved) -> tuple[int, int]:
        scale = self._opened.bundle.sizes.scale
        return request.height // scale, request.width // scale


def resized(latents: Tensor, sides: tuple[int, int]) -> Tensor:
    """Latents f32 [n, C, h, w] of other sides, by bilinear interpolation."""
    if latents.shape[2:] == sides:
        return latents
    height, width = latents.shape[2:]
    plane = 4 * height * width
    data = memoryview(latents).cast("B")
    planes = (data[k : k + plane] for k in range(0, latents.nbytes, plane))
    pictures = [Image.frombytes("F", (width, height), p) for p in planes]
    size = sides[1], sides[0]
    made = Tensor.empty((*latents.shape[:2], *sides), "f32")
    grown = b"".join(p.resize(size, Image.Resampling.BILINEAR).tobytes() for p in pictures)
    memoryview(made).cast("B")[:] = grown
    return made


def rows(redrawn: Redrawn, start: int, stop: int) -> Redrawn:
    """Those of images start … stop − 1, each of its own row where there are several, else alike."""
    given = (redrawn.latents, redrawn.mask, redrawn.beside)
    latents, mask, beside = (None if t is None else _taken(t, start, stop) for t in given)
    assert latents is not None
    return replace(redrawn, latents=latents, mask=mask, beside=beside)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Their rows, one after the other."""
    count = sum(tensor.shape[0] for tensor in tensors)
    whole = Tensor.empty((count, *tensors[0].shape[1:]), "f32")
    memoryview(whole).cast("B")[:] = b"".join(bytes(memoryview(t).cast("B")) for t in tensors)
    return whole


def _taken(tensor: Tensor, start: int, stop: int) -> Tensor:
    if tensor.shape[0] > 1:
        return tensor.rows(start, stop)
    return joined([tensor] * (stop - start))
