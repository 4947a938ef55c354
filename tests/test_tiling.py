"""Tiles of latents and pictures, and what networks make of them.

The demo's autoencoder is trained on pictures of 128 pixels: tiles of that size have tones it knows.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_bundles import DEMO, MODELS, write_bundle

import sdfast
from sdfast import bundle, tiling
from sdfast.backends import Engine, open_engine
from sdfast.errors import InvalidRequest
from sdfast.tensors import Tensor

Array = NDArray[Any]
lengths, tiles = st.integers(1, 600), st.integers(2, 200)


@given(lengths, tiles)
def test_equal_tiles_cover_an_axis_and_overlap(length: int, tile: int) -> None:
    along = tiling.axis(length, tile)
    assert along.tile == min(tile, length)
    assert (along.starts[0], along.starts[-1] + along.tile) == (0, length)
    overlap = min(16, tile // 4)
    assert all(b > a and a + tile - b >= overlap for a, b in pairwise(along.starts))
    # One tile less would not do.
    fewer = len(along.starts) - 1
    assert fewer * tile - max(fewer - 1, 0) * overlap < length


@given(lengths, tiles, st.sampled_from([1, 8]))
def test_weights_are_one_together_at_every_pixel(length: int, tile: int, scale: int) -> None:
    along = tiling.axis(length, tile)
    total = np.zeros(scale * length)
    for start, of_tile in zip(along.starts, tiling.weights(along, scale), strict=True):
        weights = np.array(of_tile)
        assert (weights >= 0).all()
        assert (weights * 256 == np.round(weights * 256)).all()
        total[scale * start : scale * (start + along.tile)] += weights
    assert (total == 1).all()


def test_weights_are_linear_ramps_over_the_overlap() -> None:
    first, last = tiling.weights(tiling.axis(112, 64), 8)
    ramp = (np.arange(128) + 0.5) / 128
    assert np.abs(np.array(last[:128]) - ramp).max() <= 1 / 512  # half of a weight's 1/256
    assert first[384:] == last[:128][::-1]
    assert set(first[:384]) == set(last[128:]) == {1.0}


LARGE = replace(DEMO.sizes, maximum=4096, multiple=64)


@pytest.mark.parametrize(
    ("width", "height"), [(1024, 1024), (512, 2048), (64, 64), (1152, 896), (4096, 256)]
)
def test_up_to_a_megapixel_a_picture_is_whole(width: int, height: int) -> None:
    grid = tiling.grid(height, width, None, LARGE)
    assert grid.rows == tiling.Axis(height // 8, height // 8, (0,))
    assert grid.columns == tiling.Axis(width // 8, width // 8, (0,))


@given(st.integers(1, 64), st.integers(1, 64))
def test_above_a_megapixel_tiles_are_as_small_as_so_few_can_be(width: int, height: int) -> None:
    grid = tiling.grid(64 * height, 64 * width, None, LARGE)
    if width * height <= 256:
        assert len(grid.rows.starts) == len(grid.columns.starts) == 1
        return
    for along, side in ((grid.rows, height), (grid.columns, width)):
        assert along.length == 8 * side
        assert along.tile <= 128
        assert along.tile % 8 == 0
        assert len(along.starts) == len(tiling.axis(along.length, 128).starts)
        overlaps = [a + along.tile - b for a, b in pairwise(along.starts)]
        assert all(16 <= overlap < 32 + 8 for overlap in overlaps)


def test_a_tile_that_is_given_has_that_size() -> None:
    grid = tiling.grid(512, 320, 320, DEMO.sizes)
    assert (grid.rows, grid.columns) == (
        tiling.Axis(64, 40, (0, 24)),
        tiling.Axis(40, 40, (0,)),
    )


def computed(engine: Engine, given: Mapping[str, Array], tile: int | None) -> dict[str, Array]:
    """What the engine makes of latent [B, 4, h, w] or image [B, H, W, 3], in tiles of that many
    pixels."""
    if "latent" in given:
        batch, _, h, w = given["latent"].shape
        made = {"image": Tensor.empty((batch, 8 * h, 8 * w, 3), "u8")}
    else:
        batch, height, width, _ = given["image"].shape
        h, w = height // 8, width // 8
        made = {name: Tensor.empty((batch, 4, h, w), "f32") for name in ("mean", "logvar")}
    tensors = {name: Tensor.from_dlpack(array) for name, array in given.items()}
    tiling.run(engine, tensors | made, tiling.grid(8 * h, 8 * w, tile, DEMO.sizes))
    return {name: np.asarray(tensor).copy() for name, tensor in made.items()}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    """A bundle whose autoencoder looks at one latent at a time."""
    folder = tmp_path_factory.mktemp("local")
    write_bundle(folder, MODELS["sd"], ())
    return bundle.load(folder)


@pytest.mark.parametrize("tile", [16, 24, 64])
def test_networks_that_look_at_one_latent_make_the_same_of_tiles(
    local: bundle.Bundle, tile: int
) -> None:
    rng = np.random.default_rng(1)
    decoder, encoder = (
        open_engine(local.network(n), "onnxruntime") for n in ("vae_decoder", "vae_encoder")
    )
    latent = {"latent": rng.standard_normal((2, 4, 13, 9), np.float32)}
    image = computed(decoder, latent, 4096)["image"]
    assert len(np.unique(image)) > 50  # not one colour
    assert (computed(decoder, latent, tile)["image"] == image).all()
    picture = {"image": rng.integers(0, 256, (2, 104, 72, 3), np.uint8)}
    for name, whole in computed(encoder, picture, 4096).items():
        assert np.allclose(computed(encoder, picture, tile)[name], whole, rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def drawn(demo: sdfast.Pipeline) -> Array:
    """Two pictures that the demo drew: u8 [2, 256, 256, 3]."""
    prompt = "a large red circle on a blue background"
    images = demo(prompt, seed=0, count=2, steps=4, width=256, height=256).images
    return np.array([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def decoder() -> Engine:
    return open_engine(DEMO.network("vae_decoder"), "onnxruntime")


@pytest.fixture(scope="module")
def encoder() -> Engine:
    return open_engine(DEMO.network("vae_encoder"), "onnxruntime")


@pytest.fixture(scope="module")
def latent(encoder: Engine, drawn: Array) -> Array:
    """Of the pictures, scaled as the U-Net has it."""
    mean = computed(encoder, {"image": drawn}, None)["mean"]
    return np.ascontiguousarray(mean * np.float32(DEMO.manifest.latent_scale))


def test_one_tile_is_the_whole_bit_by_bit(decoder: Engine, latent: Array) -> None:
    image = Tensor.empty((2, 256, 256, 3), "u8")
    decoder.bind({"latent": Tensor.from_dlpack(latent), "image": image})
    decoder.run()
    for tile in (None, 256, 512):
        assert (computed(decoder, {"latent": latent}, tile)["image"] == np.asarray(image)).all()


def decibels(difference: Array) -> float:
    """Peak signal-to-noise ratio of pictures that differ so."""
    return float(10 * np.log10(255**2 / (difference**2).mean()))


def step_at_seams(difference: Array) -> float:
    """The largest mean step of a difference of images from a column to the next, or a row: what a
    seam would be. Levels of 255."""
    steps = (np.abs(np.diff(difference, axis=axis)) for axis in (1, 2))
    return max(
        float(step.mean(axis=tuple({0, 1, 2, 3} - {axis})).max())
        for axis, step in zip((1, 2), steps, strict=True)
    )


def test_tiles_are_decoded_to_the_picture_without_seams(
    decoder: Engine, latent: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = computed(decoder, {"latent": latent}, None)["image"].astype(np.float64)
    got = computed(decoder, {"latent": latent}, 128)["image"]
    difference = got - whole
    # 40 dB: as near as a JPEG of high quality. No column and no row steps away from the next by a
    # level of 255, the least that a screen can show.
    assert decibels(difference) > 40
    assert step_at_seams(difference) < 1
    # Tiles that only touch have seams, and this measure finds them.
    monkeypatch.setattr(tiling, "_OVERLAP", 0)
    touching = computed(decoder, {"latent": latent}, 128)["image"]
    assert step_at_seams(touching - whole) > 3


def test_every_image_of_a_batch_is_decoded_as_alone(decoder: Engine, latent: Array) -> None:
    part = np.ascontiguousarray(latent[:, :, :16, :14])
    together = computed(decoder, {"latent": part}, 64)["image"]
    for k in range(2):
        alone = computed(decoder, {"latent": part[k : k + 1]}, 64)["image"]
        assert (together[k] == alone[0]).all()


def test_tiles_are_encoded_to_the_latents(encoder: Engine, drawn: Array) -> None:
    whole = computed(encoder, {"image": drawn}, None)
    got = computed(encoder, {"image": drawn}, 128)
    error = got["mean"] - whole["mean"]
    # Less than the deviation that the encoder itself gives its latents, which is drawn on top; and
    # that deviation's variance is the same within a tenth.
    assert (error**2).mean() < np.exp(whole["logvar"]).mean()
    assert np.sqrt(((got["logvar"] - whole["logvar"]) ** 2).mean()) < 0.1


def test_the_pipeline_decodes_in_tiles(
    demo: sdfast.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    request: dict[str, Any] = {"seed": 2, "steps": 4, "width": 192}
    prompt = "a large green star on a white background"
    whole, cut = (
        np.asarray(pipe(prompt, **request).images[0], np.float64)
        for pipe in (demo, sdfast.load("demo", "onnxruntime", tile=128))
    )
    # The same picture, though after few steps no finished one: the decoder's tones differ by more.
    assert 30 < decibels(cut - whole) < np.inf
    monkeypatch.setattr(tiling, "WHOLE", 128)
    automatic = np.asarray(sdfast.load("demo", "onnxruntime")(prompt, **request).images[0])
    assert (automatic == cut).all()


@pytest.mark.parametrize(
    ("tile", "word"),
    [
        (100, "tile is 100; it must be a multiple of 32 pixels: try 96 or 128"),
        (32, "whole number from 64 to 512"),
        (1024, "whole number from 64 to 512"),
        (True, "whole number"),
        ("128", "whole number"),
    ],
)
def test_a_tile_of_no_size_of_the_bundle_is_refused(tile: Any, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        sdfast.load("demo", tile=tile)


PEAK = """
import sys
from pathlib import Path
from sdfast import store, tiling
from sdfast.backends import open_engine
from sdfast.tensors import Tensor
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
demo = store.load("demo")
decoder = open_engine(demo.network("vae_decoder"), "onnxruntime")
tensors = {
    "latent": Tensor.zeros((1, 4, 64, 64), "f32"),
    "image": Tensor.zeros((1, 512, 512, 3), "u8"),
}
before = peak()
tiling.run(decoder, tensors, tiling.grid(512, 512, int(sys.argv[1]), demo.sizes))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_tiles_need_the_memory_of_a_tile() -> None:
    whole, cut = (
        int(subprocess.check_output([sys.executable, "-c", PEAK, str(tile)])) for tile in (512, 128)
    )
    # A sixteenth of the pixels at once, and beside them the sum of all: 3 MB.
    assert cut < whole / 4
