from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdfast import images, infotext
from sdfast.canvas import told
from sdfast.errors import InvalidRequest
from sdfast.provenance import Inputs, Origin, Provenance
from sdfast.request import Request
from sdfast.tensors import Tensor

REQUEST = Request(
    prompt="a rød circle — «quoted»",
    negative_prompt="stripes",
    steps=20,
    sampler="dpmpp_2m",
    schedule="karras",
    guidance=4.5,
    seed=2**60,
    width=64,
    height=32,
)


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    return Image.fromarray(pixels)


def test_pixels_become_pictures_with_memory_of_their_own() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), np.uint8)
    kept = pixels.copy()
    found = images.from_pixels(Tensor.from_dlpack(pixels))
    pixels[:] = 0
    assert [image.size for image in found] == [(64, 32)] * 2
    assert all(np.array_equal(np.asarray(i), k) for i, k in zip(found, kept, strict=True))


@pytest.mark.parametrize("form", images.FORMATS)
def test_every_format_carries_the_request_back(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"picture.{form}"
    file.write_bytes(images.encode(picture(), form, REQUEST, "demo", "0.1.0"))
    assert images.read_request(file) == (REQUEST, "demo")
    with Image.open(file) as found:
        assert found.size == (64, 32)
        if form == "png":
            assert np.array_equal(np.asarray(found), np.asarray(picture()))


def test_png_has_the_parameters_line_that_other_programs_read(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(images.encode(picture(), "png", REQUEST, "demo", "0.1.0"))
    with Image.open(file) as found:
        line, full = found.info["parameters"], json.loads(found.info["sdfast"])
    assert line.splitlines() == [
        "a rød circle — «quoted»",
        "Negative prompt: stripes",
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, "
        f"Seed: {2**60}, Size: 64x32, Model: demo, RNG: NV, Version: sdfast 0.1.0",
    ]
    assert full["request"]["prompt"] == REQUEST.prompt


def test_the_line_and_the_request_tell_how_guidance_was_limited(tmp_path: Path) -> None:
    request = replace(REQUEST, guidance_rescale=0.7, guidance_interval=(0.3, 5.0))
    file = tmp_path / "picture.png"
    file.write_bytes(images.encode(picture(), "png", request, "demo", "0.1.0"))
    assert images.read_request(file) == (request, "demo")
    with Image.open(file) as found:
        line = found.info["parameters"]
    assert "CFG scale: 4.5, CFG rescale: 0.7, CFG interval: 0.3-5, Seed" in line


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"strength": 0.6, "image": "a.png"}, "demo, Denoising strength: 0.6, RNG"),
        ({"clip_skip": 1}, "Clip skip: 2, RNG"),
        ({"hires": {"scale": 1.5, "strength": 0.3}}, "strength: 0.3, Hires upscale: 1.5"),
    ],
)
def test_the_line_tells_what_is_redrawn_as_others_do(given: dict[str, Any], told: str) -> None:
    assert told in infotext.write(replace(REQUEST, **given), "demo", "0.1.0")


@pytest.mark.parametrize("form", images.FORMATS)
def test_what_is_too_long_for_a_file_is_left_out_of_it(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"picture.{form}"
    long = replace(REQUEST, prompt="a red star, " * 1600)
    file.write_bytes(images.encode(picture(), form, long, "demo", "0.1.0"))
    assert images.read_request(file) == (long, "demo")
    endless = replace(REQUEST, negative_prompt="«" * 20_000)  # six bytes each in JSON
    file.write_bytes(images.encode(picture(), form, endless, "demo", "0.1.0"))
    assert images.whole(file)


def test_pictures_from_before_a_parameter_existed_still_load(tmp_path: Path) -> None:
    old = REQUEST.to_dict()
    del old["guidance_rescale"], old["guidance_interval"]
    info = PngInfo()
    info.add_itxt("sdfast", json.dumps({"request": old, "model": "demo", "version": "0.1.0"}))
    file = tmp_path / "old.png"
    picture().save(file, pnginfo=info)
    assert images.read_request(file) == (REQUEST, "demo")


def test_jpeg_has_it_where_a1111_puts_it(tmp_path: Path) -> None:
    file = tmp_path / "picture.jpg"
    file.write_bytes(images.encode(picture(), "jpg", REQUEST, "demo", "0.1.0"))
    with Image.open(file) as found:
        comment = found.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be").startswith(REQUEST.prompt)


MADE = Provenance(
    Origin(
        "demo", "d" * 64, "onnxruntime", "1", "cpu", "a CPU", (), "fp32", "0.1.0", 2, None, False
    ),
    Inputs({"image": "sha256:1"}, {}, {"ink": "2"}),
    4,
    3,
)


@pytest.mark.parametrize("form", images.FORMATS)
def test_every_format_carries_what_drew_it_and_the_digest_of_its_pixels(
    form: str, tmp_path: Path
) -> None:
    file = tmp_path / f"picture.{form}"
    file.write_bytes(images.encode(picture(), form, REQUEST, "demo", "0.1.0", MADE))
    found = images.read(file)
    assert (found.request, found.model, found.version) == (REQUEST, "demo", "0.1.0")
    assert found.made == MADE
    assert found.pixels == told(picture())
    assert found.lossy == (None if form == "png" else images.FORMATS[form])


def test_pictures_from_before_they_told_what_drew_them_still_load(tmp_path: Path) -> None:
    info = PngInfo()
    said = {"request": REQUEST.to_dict(), "model": "demo", "version": "0.1.0"}
    info.add_itxt("sdfast", json.dumps(said))
    file = tmp_path / "old.png"
    picture().save(file, pnginfo=info)
    found = images.read(file)
    assert (found.request, found.pixels, found.made) == (REQUEST, None, None)


@pytest.mark.parametrize("made", [7, {}, {"origin": {}}, {**MADE.to_dict(), "together": "two"}])
def test_a_damaged_record_is_refused(made: object, tmp_path: Path) -> None:
    info = PngInfo()
    said = {"request": REQUEST.to_dict(), "model": "demo", "version": "0.1.0", "made": made}
    info.add_itxt("sdfast", json.dumps(said))
    file = tmp_path / "odd.png"
    picture().save(file, pnginfo=info)
    with pytest.raises(InvalidRequest, match="damaged or of a newer sdfast"):
        images.read(file)
    assert images.read_request(file) == (REQUEST, "demo")


def test_pictures_of_a1111_tell_their_request_too(tmp_path: Path) -> None:
    text = infotext.write(REQUEST, "other", "1")
    png, jpeg = tmp_path / "a.png", tmp_path / "a.jpg"
    info = PngInfo()
    info.add_text("parameters", text)
    picture().save(png, pnginfo=info)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    picture().save(jpeg, exif=exif)
    for file in (png, jpeg):
        assert images.read_request(file) == (REQUEST, "other")
        with pytest.raises(InvalidRequest, match="carries no request of sdfast"):
            images.read(file)


def test_pictures_of_others_are_refused(tmp_path: Path) -> None:
    plain, text = tmp_path / "plain.png", tmp_path / "text.png"
    picture().save(plain)
    text.write_text("no picture")
    for file, word in (
        (plain, "carries no request"),
        (text, "cannot be read as a picture"),
        (tmp_path / "missing.png", "cannot be read"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(InvalidRequest, match=word):
            images.read_request(file)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="png, jpeg, jpg, webp"):
        images.encode(picture(), "bmp", REQUEST, "demo", "0")
