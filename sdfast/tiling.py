"""Tiles: the autoencoder's networks over a large picture, a part at a time, so that they need the
memory of a part.

Neighbouring tiles overlap and are blended there by linear ramps, as diffusers' `tiled_decode` does
it: what a network writes near a tile's border lacks what lies beyond, and the tiles' tones differ a
little, because norms are over a tile. The weights of all tiles are 1 together at every pixel, so no
order of the tiles is another picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from . import _core
from .backends import Engine
from .bundle import Sizes
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


def run(engine: Engine, tensors: Mapping[str, Tensor], tiles: Grid) -> None:
    """`engine.bind(tensors)` and `engine.run()`, tile by tile where there are several.

    engine: of vae_decoder or vae_encoder, or one with tensors like theirs: latents f32 [B, C, h, w]
        of the grid's sides, images u8 [B, H, W, 3] of a multiple of them
    """
    if len(tiles.rows.starts) == len(tiles.columns.starts) == 1:
        engine.bind(tensors)
        engine.run()
        return
    # Allocated for this one run, beside which that is nothing: plans that wait hold only pictures.
    scales = {name: _scale(tensor, tiles) for name, tensor in tensors.items()}
    parts = {name: _part(tensor, scales[name], tiles) for name, tensor in tensors.items()}
    sums = {name: Tensor.zeros(tensors[name].shape, "f32") for name in engine.outputs}
    ramps = {
        name: (weights(tiles.rows, scales[name]), weights(tiles.columns, scales[name]))
        for name in sums
    }
    engine.bind(parts)
    for (i, top), (j, left) in product(
        enumerate(tiles.rows.starts), enumerate(tiles.columns.starts)
    ):
        for name in engine.inputs:
            _core.cut_tile(parts[name], tensors[name], scales[name] * top, scales[name] * left)
        engine.run()
        for name, total in sums.items():
            place = (scales[name] * top, scales[name] * left)
            rows, columns = ramps[name]
            _core.add_tile(total, parts[name], *place, rows[i], columns[j])
    for name, total in sums.items():
        _core.write_sum(tensors[name], total)


def _scale(tensor: Tensor, tiles: Grid) -> int:
    """Pixels of a tensor for each latent of the grid; 1 for latents."""
    height = tensor.shape[1 if tensor.dtype == "u8" else 2]
    return height // tiles.rows.length


def _part(tensor: Tensor, scale: int, tiles: Grid) -> Tensor:
    """Memory for a tile of it."""
    sides, shape = (scale * tiles.rows.tile, scale * tiles.columns.tile), tensor.shape
    needed = (shape[0], *sides, shape[3]) if tensor.dtype == "u8" else (*shape[:2], *sides)
    return Tensor.empty(needed, tensor.dtype)
