from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sdfast.canvas import RESIZES, canvas, latent_mask, opened, told, without
from sdfast.errors import InvalidRequest


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def box(size: tuple[int, int], inner: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle(inner, fill=255)
    return mask


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


def url(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def test_a_picture_is_read_from_memory_a_file_and_a_data_url(tmp_path: Path) -> None:
    picture = photo()
    picture.save(tmp_path / "a.png")
    for value in (picture, str(tmp_path / "a.png"), tmp_path / "a.png", url(picture)):
        assert same(opened("image", value), picture)


def test_pictures_that_programs_are_run_for_are_refused(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png", "EPS")
    with pytest.raises(InvalidRequest, match="no picture that can be read: give one of AVIF, BMP"):
        opened("image", tmp_path / "a.png")


def test_grey_of_16_bits_keeps_its_levels(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 96 * 64).astype(np.uint16).reshape(64, 96)
    Image.fromarray(levels).save(tmp_path / "depth.png")
    found = np.asarray(opened("image", tmp_path / "depth.png"), np.float64)
    assert found.shape == (64, 96, 3)
    assert np.abs(found - levels[:, :, None] / 257).max() <= 0.5 + 1e-6


def test_a_camera_that_was_turned_is_turned_back(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    photo().save(tmp_path / "turned.png", exif=exif)
    assert opened("image", str(tmp_path / "turned.png")).size == (64, 96)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("nowhere.png", "image nowhere.png cannot be read .No such file"),
        (__file__, "is no picture"),
        (3, "it must be a picture's path"),
        ("data:image/png;base64,!!!", "cannot be read"),
        ("data:image/png;base64,aGVsbG8=", "is no picture"),
        ("sha256:00", "give it again"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_what_is_no_picture_is_refused(value: object, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word) as refused:
        opened("image", value)
    assert len(str(refused.value)) < 200


def test_a_picture_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = url(photo())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        opened("image", given)


def test_a_picture_in_memory_is_told_by_its_pixels() -> None:
    assert told(photo()) == told(photo()) != told(photo(seed=1))
    assert told("a.png") == "a.png"
    assert told(url(photo())) == told(url(photo())) != told(url(photo(seed=1)))
    assert len(told(url(photo()))) < 80  # a file's metadata has no room for pictures
    assert told(None) is None


@pytest.mark.parametrize("resize", RESIZES)
def test_a_picture_of_the_size_is_drawn_as_it_is(resize: str) -> None:
    made = canvas(photo(), None, (96, 64), 8, resize=resize)
    assert same(made.picture, photo())
    assert same(made.finished(photo(seed=1)), photo(seed=1))


def test_other_sizes_are_made_to_fit() -> None:
    red = Image.new("RGB", (200, 100), "red")
    red.paste("blue", (0, 0, 100, 100))
    cut = canvas(red, None, (64, 64), 8).picture
    assert cut.getpixel((0, 0)) == (0, 0, 255)  # half of it is left: its middle
    assert cut.getpixel((63, 0)) == (255, 0, 0)
    drawn_out = canvas(red, None, (64, 64), 8, resize="stretch").picture
    assert np.asarray(drawn_out)[:, :28, 2].min() == 255
    padded = np.asarray(canvas(red, None, (64, 64), 8, resize="pad").picture)
    assert (padded[0] == padded[20]).all()  # the border's colours go on
    assert (padded[-1] == padded[20]).all()
    own = canvas(red.resize((203, 97)), None, (64, 64), 8, resize="latent").picture
    assert own.size == (200, 96)


def test_what_is_outside_of_the_mask_comes_back_as_it_was() -> None:
    picture, mask = photo(128, 128), box((128, 128), (40, 24, 90, 70))
    for blur in (0.0, 8.0):
        made = canvas(picture, mask, (128, 128), 8, blur=blur)
        finished = np.asarray(made.finished(photo(128, 128, seed=1)))
        outside = np.asarray(mask) == 0
        assert (finished[outside] == np.asarray(picture)[outside]).all()
        if blur == 0:
            inside = np.asarray(photo(128, 128, seed=1))[~outside]
            assert (finished[~outside] == inside).all()
    assert made.paste is not None
    fading = np.asarray(made.paste)[47, 40:66]
    assert fading[0] < 60 < 200 < fading[-1]
    assert (np.diff(fading.astype(int)) >= 0).all()


def test_every_latent_with_a_pixel_of_the_mask_is_redrawn() -> None:
    mask = np.asarray(latent_mask(box((64, 64), (15, 16, 16, 31)), 8))
    assert mask.shape == (8, 8)
    assert (np.argwhere(mask == 255) == [[2, 1], [2, 2], [3, 1], [3, 2]]).all()
    assert set(mask.flat) == {0, 255}


def test_the_part_around_the_mask_is_drawn_large_and_put_back() -> None:
    picture, mask = photo(512, 384), box((512, 384), (100, 100, 139, 119))
    made = canvas(picture, mask, (128, 128), 8, margin=10)
    assert made.picture.size == (128, 128)
    assert made.box == (90, 80, 150, 140)  # a square around (90, 90, 150, 130)
    finished = made.finished(Image.new("RGB", (128, 128), "red"))
    assert finished.size == (512, 384)
    changed = np.asarray(finished) != np.asarray(picture)
    assert not changed[np.asarray(mask) == 0].any()
    assert finished.getpixel((120, 110)) == (255, 0, 0)


@pytest.mark.parametrize("inner", [(0, 0, 5, 5), (500, 370, 511, 383), (0, 0, 511, 383)])
def test_the_part_around_a_mask_at_the_border_is_inside_of_the_picture(
    inner: tuple[int, int, int, int],
) -> None:
    made = canvas(photo(512, 384), box((512, 384), inner), (128, 64), 8, margin=40)
    left, top, right, bottom = made.box
    assert 0 <= left <= inner[0] < inner[2] < right <= 512
    assert 0 <= top <= inner[1] < inner[3] < bottom <= 384


def test_pixels_that_are_put_around_are_redrawn() -> None:
    picture = photo(96, 64)
    made = canvas(picture, None, (160, 96), 8, outpaint=(32, 0, 32, 32))
    assert made.mask is not None
    assert same(made.picture.crop((32, 0, 128, 64)), picture)
    around = np.asarray(made.picture)
    assert (around[:64, :32] == np.asarray(picture)[:, :1]).all()
    assert (around[64:, 32:128] == np.asarray(picture)[-1:]).all()
    assert np.asarray(made.mask)[:64, 32:128].max() == 0
    finished = made.finished(Image.new("RGB", (160, 96), "red"))
    assert same(finished.crop((32, 0, 128, 64)), picture)
    assert finished.getpixel((0, 95)) == (255, 0, 0)


def test_networks_for_inpainting_see_grey_where_it_is_redrawn() -> None:
    seen = without(photo(), box((96, 64), (0, 0, 9, 9)))
    assert seen.getpixel((5, 5)) == (128, 128, 128)
    assert seen.getpixel((50, 5)) == photo().getpixel((50, 5))


def test_masks_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="black everywhere"):
        canvas(photo(), Image.new("L", (96, 64)), (96, 64), 8)
    with pytest.raises(InvalidRequest, match="mask is 64×64; it must have the sides of image, 96×"):
        canvas(photo(), Image.new("L", (64, 64), 255), (96, 64), 8)
    half = canvas(photo(), box((48, 32), (0, 0, 9, 9)), (96, 64), 8)  # of the same ratio
    assert half.mask is not None
    assert half.mask.getbbox() == (0, 0, 20, 20)
