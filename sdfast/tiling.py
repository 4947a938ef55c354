"""Tiles: networks over a large picture, a part at a time: the autoencoder's, so that they need the
memory of a part, and the U-Net beyond the sizes that it draws.

Neighbouring tiles overlap and are blended there by linear ramps, as diffusers' `tiled_decode` does
it: what a network writes near a tile's border lacks what lies beyond, and the tiles' tones differ a
little, because norms are over a tile. The weights of all tiles are 1 together at every pixel, so no
order of the tiles is another picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from . import _core
from .backends import Engine
from .bundle import Sizes
from .devices.calls import Network
from .tensors import Tensor

WHOLE = 1024  # pixels a side of the largest square that is not cut up unasked
_OVERLAP = 16  # latents that neighbours share at least: 128 pixels, what diffusers' tiles share
_SHADES = 256  # weights are multiples of its reciprocal, which sums in float32 hold exactly


@dataclass(frozen=True)
class Axis:
    """Equal tiles along one axis of a latent, in latents: its length, a tile's, where each
    begins."""

    length: int
    tile: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """The tiles of a picture: each row of them with each column."""

    rows: Axis
    columns: Axis

    @property
    def single(self) -> bool:
        """Whether one tile is the whole."""
        return len(self.rows.starts) == len(self.columns.starts) == 1


def grid(height: int, width: int, tile: int | None, sizes: Sizes) -> Grid:
    """The tiles of a picture of height × width pixels.

    tile: pixels a side of each (less where the picture has less), a multiple of sizes.scale; None
        for one tile up to 1024×1024 pixels, above that tiles no longer than 1024 a side
    """
    sides = [side // sizes.scale for side in (height, width)]
    if tile is not None:
        return Grid(*(axis(side, tile // sizes.scale) for side in sides))
    if height * width <= WHOLE**2:
        return Grid(*(axis(side, side) for side in sides))
    largest, multiple = WHOLE // sizes.scale, sizes.multiple // sizes.scale
    return Grid(*(axis(side, _fitted(side, largest, multiple)) for side in sides))


def beyond(height: int, width: int, sizes: Sizes) -> Grid:
    """The tiles that a network sees of a picture larger than it draws, each of the size that it
    draws best (arXiv:2302.08113 blends what it says of them at every step)."""
    sides = (height, sizes.height), (width, sizes.width)
    return Grid(*(axis(side // sizes.scale, usual // sizes.scale) for side, usual in sides))


def axis(length: int, tile: int) -> Axis:
    """As few tiles as cover the length with the overlap, evenly spread; one where it is no longer
    than a tile."""
    if length <= tile:
        return Axis(length, length, (0,))
    overlap = _overlap(tile)
    gaps = -(-(length - overlap) // (tile - overlap)) - 1
    return Axis(length, tile, tuple((length - tile) * k // gaps for k in range(gaps + 1)))


def _overlap(tile: int) -> int:
    return min(_OVERLAP, tile // 4)


def _fitted(length: int, largest: int, multiple: int) -> int:
    """The shortest tile, no longer than the largest, of which as few cover the length."""
    count, overlap = len(axis(length, largest).starts), _overlap(largest)
    shortest = -(-(length + (count - 1) * overlap) // count)
    return min(largest, -(-shortest // multiple) * multiple)


def weights(along: Axis, scale: int) -> list[list[float]]:
    """What each tile counts for at each of its pixels, of which a latent has `scale`: ramps over
    what it shares with its neighbours. At every pixel of the axis they are 1 together."""
    starts, tile = [scale * start for start in along.starts], scale * along.tile

    def passed(k: int, at: int) -> int:
        """How far the ramp from tile k − 1 to tile k has risen at a pixel, 0 … 256."""
        if k in (0, len(starts)):
            return 0 if k else _SHADES
        begin, end = starts[k], starts[k - 1] + tile
        if begin <= at < end:
            return round(_SHADES * (at - begin + 0.5) / (end - begin))
        return 0 if at < begin else _SHADES

    return [
        [(passed(k, at) - passed(k + 1, at)) / _SHADES for at in range(start, start + tile)]
        for k, start in enumerate(starts)
    ]


class Tiled:
    """A network that runs tile by tile, as one on the tensors of the whole.

    cut: its inputs that are cut up, latents f32 [R, C, h, w] of the grid's sides or images u8
        [R, H, W, 3] of a multiple of them; it reads all others whole
    joined: its outputs that are put together; others of the grid's sides, which `spare` names, are
        written for a tile and forgotten
    """

    def __init__(
        self,
        network: Network,
        tiles: Grid,
        cut: Iterable[str],
        joined: Iterable[str],
        spare: Iterable[str] = (),
    ) -> None:
        self._network, self._tiles = network, tiles
        self._cut, self._joined, self._spare = tuple(cut), tuple(joined), tuple(spare)

    def bind(self, tensors: Mapping[str, Tensor], /) -> None:
        names = (*self._cut, *self._joined, *(name for name in self._spare if name in tensors))
        scales = {name: _scale(tensors[name], self._tiles) for name in names}
        self._whole, self._scales = tensors, scales
        self._parts = {name: _part(tensors[name], scales[name], self._tiles) for name in names}
        self._sums = {name: Tensor.zeros(tensors[name].shape, "f32") for name in self._joined}
        self._network.bind({**tensors, **self._parts})

    def run(self) -> None:
        rows, columns = self._tiles.rows, self._tiles.columns
        ramps = {
            name: (weights(rows, self._scales[name]), weights(columns, self._scales[name]))
            for name in self._joined
        }
        for total in self._sums.values():
            memoryview(total).cast("B")[:] = bytes(total.nbytes)
        for (i, top), (j, left) in product(enumerate(rows.starts), enumerate(columns.starts)):
            place = {name: (scale * top, scale * left) for name, scale in self._scales.items()}
            for name in self._cut:
                _core.cut_tile(self._parts[name], self._whole[name], *place[name])
            self._network.run()
            for name, total in self._sums.items():
                of_rows, of_columns = ramps[name]
                part = self._parts[name]
                _core.add_tile(total, part, *place[name], of_rows[i], of_columns[j])
        for name, total in self._sums.items():
            _core.write_sum(self._whole[name], total)


def run(engine: Engine, tensors: Mapping[str, Tensor], tiles: Grid) -> None:
    """`engine.bind(tensors)` and `engine.run()`, tile by tile where there are several.

    engine: of vae_decoder or vae_encoder, or one with tensors like theirs
    """
    network: Network = engine
    if not tiles.single:  # memory for this one run, beside which that is nothing
        network = Tiled(engine, tiles, engine.inputs, engine.outputs)
    network.bind(tensors)
    network.run()


def _scale(tensor: Tensor, tiles: Grid) -> int:
    """Pixels of a tensor for each latent of the grid; 1 for latents."""
    height = tensor.shape[1 if tensor.dtype == "u8" else 2]
    return height // tiles.rows.length


def _part(tensor: Tensor, scale: int, tiles: Grid) -> Tensor:
    """Memory for a tile of it."""
    sides, shape = (scale * tiles.rows.tile, scale * tiles.columns.tile), tensor.shape
    needed = (shape[0], *sides, shape[3]) if tensor.dtype == "u8" else (*shape[:2], *sides)
    return Tensor.empty(needed, tensor.dtype)
