"""The native passes over tiles against NumPy. Sums of bytes by weights k / 256 are exact in
float32: a weight of a pixel has 16 bits and a byte 8, together the 24 of a float32."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sdfast import _core, tiling
from sdfast.tensors import Tensor

Array = NDArray[np.generic]
seeds = st.integers(0, 2**32 - 1)
axes = st.builds(tiling.axis, st.integers(1, 24), st.integers(2, 12))
scales = st.integers(1, 3)


def places(rows: tiling.Axis, columns: tiling.Axis) -> list[tuple[tuple[int, int], ...]]:
    """(number, start) of each tile's row and column."""
    return list(product(enumerate(rows.starts), enumerate(columns.starts)))


def blended(
    total: NDArray[np.float32],
    rows: tiling.Axis,
    columns: tiling.Axis,
    scale: int,
    tile: Callable[[int, int], Array],
    order: list[tuple[tuple[int, int], ...]],
) -> None:
    down, across = tiling.weights(rows, scale), tiling.weights(columns, scale)
    for (i, top), (j, left) in order:
        part = Tensor.from_dlpack(np.ascontiguousarray(tile(i, j)))
        target = Tensor.from_dlpack(total)
        _core.add_tile(target, part, scale * top, scale * left, down[i], across[j])


@given(axes, axes, scales, st.integers(1, 2), seeds)
def test_an_image_cut_into_tiles_is_blended_to_its_own_bytes(
    rows: tiling.Axis, columns: tiling.Axis, scale: int, batch: int, seed: int
) -> None:
    shape = (batch, scale * rows.length, scale * columns.length, 3)
    whole = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)

    def cut(i: int, j: int) -> Array:
        part = np.zeros((batch, scale * rows.tile, scale * columns.tile, 3), np.uint8)
        corner = (scale * rows.starts[i], scale * columns.starts[j])
        _core.cut_tile(Tensor.from_dlpack(part), Tensor.from_dlpack(whole), *corner)
        return part

    total = np.zeros(shape, np.float32)
    blended(total, rows, columns, scale, cut, places(rows, columns))
    assert (total == whole).all()
    out = np.zeros(shape, np.uint8)
    _core.write_sum(Tensor.from_dlpack(out), Tensor.from_dlpack(total))
    assert (out == whole).all()


@given(axes, axes, scales, seeds)
def test_no_order_of_the_tiles_is_another_image(
    rows: tiling.Axis, columns: tiling.Axis, scale: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (len(rows.starts), len(columns.starts), 1, scale * rows.tile, scale * columns.tile, 3)
    tiles = rng.integers(0, 256, shape, np.uint8)
    order = places(rows, columns)
    sums = []
    for turn in (order, [order[k] for k in rng.permutation(len(order))]):
        total = np.zeros((1, scale * rows.length, scale * columns.length, 3), np.float32)
        blended(total, rows, columns, scale, lambda i, j: tiles[i, j], turn)
        sums.append(total)
    assert (sums[0] == sums[1]).all()
    expected = np.zeros(sums[0].shape)
    down, across = tiling.weights(rows, scale), tiling.weights(columns, scale)
    for (i, top), (j, left) in order:
        part = np.outer(down[i], across[j])[None, :, :, None] * tiles[i, j].astype(np.float64)
        y, x = scale * top, scale * left
        expected[:, y : y + part.shape[1], x : x + part.shape[2]] += part
    assert (sums[0] == expected).all()


@given(axes, axes, st.integers(1, 2), seeds)
def test_latents_cut_into_tiles_are_blended_to_themselves(
    rows: tiling.Axis, columns: tiling.Axis, batch: int, seed: int
) -> None:
    shape = (batch, 4, rows.length, columns.length)
    whole = np.random.default_rng(seed).standard_normal(shape, np.float32)

    def cut(i: int, j: int) -> Array:
        part = np.full((batch, 4, rows.tile, columns.tile), np.nan, np.float32)
        corner = (rows.starts[i], columns.starts[j])
        _core.cut_tile(Tensor.from_dlpack(part), Tensor.from_dlpack(whole), *corner)
        return part

    total, out = np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32)
    blended(total, rows, columns, 1, cut, places(rows, columns))
    _core.write_sum(Tensor.from_dlpack(out), Tensor.from_dlpack(total))
    # A float32 by a weight is rounded, and so are sums: a few times 6e-8 of the value.
    assert np.allclose(out, whole, rtol=1e-6, atol=0)


def test_sums_are_clamped_and_rounded_halves_up() -> None:
    total = np.array([-1, 0, 0.49, 0.5, 1.5, 2.5, 254.49, 254.5, 255, 300, np.nan, 7], np.float32)
    out = np.full((1, 2, 2, 3), 9, np.uint8)
    _core.write_sum(Tensor.from_dlpack(out), Tensor.from_dlpack(total.reshape(out.shape)))
    assert out.ravel().tolist() == [0, 0, 0, 1, 2, 3, 254, 255, 255, 255, 0, 7]


def test_zeros_are_zeros() -> None:
    assert not np.asarray(Tensor.zeros((3, 5), "f32")).any()


def image(*shape: int, dtype: str = "u8") -> Tensor:
    return Tensor.zeros(shape, dtype)


WHOLE = image(4, 4, 4, 3)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: _core.cut_tile(image(1, 3, 3, 3), image(1, 4, 4, 3), 2, 0), "inside"),
        (lambda: _core.cut_tile(image(1, 3, 3, 3), image(1, 4, 4, 3), 0, -1), "inside"),
        (lambda: _core.cut_tile(image(1, 3, 3, 3), image(1, 4, 4, 3), 2**62, 0), "inside"),
        (lambda: _core.cut_tile(image(1, 5, 3, 3), image(1, 4, 4, 3), 0, 0), "inside"),
        (lambda: _core.cut_tile(image(2, 3, 3, 3), image(1, 4, 4, 3), 0, 0), "batch"),
        (lambda: _core.cut_tile(image(1, 3, 3, 4), image(1, 4, 4, 3), 0, 0), "channels"),
        (lambda: _core.cut_tile(image(3, 3, 3), image(4, 4, 3), 0, 0), "four axes"),
        (lambda: _core.cut_tile(image(1, 3, 3, 3), image(1, 3, 4, 4, dtype="f32"), 0, 0), "type"),
        (lambda: _core.cut_tile(*[image(1, 3, 3, 3, dtype="i32")] * 2, 0, 0), "u8"),
        (lambda: _core.cut_tile(WHOLE.rows(0, 2), WHOLE.rows(1, 3), 0, 0), "lie apart"),
        (
            lambda: _core.add_tile(image(1, 4, 4, 3), image(1, 2, 2, 3), 0, 0, [1, 1], [1, 1]),
            "total is u8; it must be f32",
        ),
        (
            lambda: _core.add_tile(
                image(1, 4, 4, 3, dtype="f32"), image(1, 2, 2, 3), 3, 0, [1, 1], [1, 1]
            ),
            "inside",
        ),
        (
            lambda: _core.add_tile(
                image(1, 4, 4, 3, dtype="f32"), image(1, 2, 2, 3), 0, 0, [1], [1, 1]
            ),
            "one weight for each row",
        ),
        (
            lambda: _core.add_tile(
                image(1, 4, 4, 3, dtype="f32"), image(1, 2, 2, 3), 0, 0, [1, 1], [1, 1, 1]
            ),
            "one weight for each row",
        ),
        (lambda: _core.write_sum(image(1, 2, 2, 3), image(1, 2, 3, 3, dtype="f32")), "one shape"),
        (lambda: _core.write_sum(image(1, 2, 2, 3), image(1, 2, 2, 3)), "f32"),
    ],
)
def test_wrong_tiles_are_refused_at_the_border(call: Callable[[], None], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        call()


def test_other_threads_run_while_a_tile_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    total, tile = image(1, 2048, 2048, 3, dtype="f32"), image(1, 2048, 2048, 3)
    ones = [1.0] * 2048
    ended: list[bool] = []

    def add() -> None:
        _core.add_tile(total, tile, 0, 0, ones, ones)
        ended.append(True)

    def this_thread_went_on() -> bool:
        ended.clear()
        worker = threading.Thread(target=add)
        worker.start()
        went_on = not ended
        worker.join()
        return went_on

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # seconds: nobody is made to give Python's lock away
    try:
        # Several times, as a busy machine may let this thread wait for a core.
        assert any(this_thread_went_on() for _ in range(10))
    finally:
        sys.setswitchinterval(interval)
