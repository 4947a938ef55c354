"""Pictures that come: of which encodings and kinds, and what is refused before memory is taken."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import tracemalloc
import zlib
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops

from sdfast.errors import InvalidRequest
from sdfast.service import Limits
from sdfast.service.http import pictures
from sdfast.service.refusals import TooLarge

LIMITS = Limits(body=1 << 20, input_pixels=1 << 20)
COLOURS = Image.radial_gradient("L").resize((48, 32))


def file_of(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def read(given: str | bytes, limits: Limits = LIMITS) -> Image.Image:
    return asyncio.run(pictures.read("image", given, limits))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG of those sides whose pixels are not there."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "written",
    [
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.b64encode(data).decode().rstrip("="),
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: base64.encodebytes(data).decode(),
        lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}",
        lambda data: f"DATA:;base64,{base64.b64encode(data).decode()}",
        lambda data: data,
    ],
    ids=["standard", "without padding", "URL-safe", "wrapped", "data URL", "bare URL", "bytes"],
)
def test_a_picture_may_be_written_in_every_base64(written: Any) -> None:
    image = COLOURS.convert("RGB")
    for size in (48, 47, 46):  # whose files end in other paddings
        part = image.crop((0, 0, size, 32))
        assert ImageChops.difference(read(written(file_of(part))), part).getbbox() is None


def test_base64_is_decoded_in_pieces_as_in_one() -> None:
    data = bytes(range(256)) * 2900  # several pieces, and none at its end
    text = base64.b64encode(data).decode()
    assert pictures.decoded("image", text, LIMITS) == data


@pytest.mark.parametrize(
    "text", ["", "=", "====", "no base64!", "data:image/png,abc", "data:,", "é" * 9, "A", "AAAAA"]
)
def test_what_is_no_base64_of_a_picture_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^image "):
        read(text)


def test_base64_beyond_the_body_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(TooLarge, match="larger than"):
        read("A" * (2 << 20))


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGB", (8, 8), (9, 8, 7)), (9, 8, 7)),
        (Image.new("L", (8, 8), 77), (77, 77, 77)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("I;16", (8, 8), 0x8000), (128, 128, 128)),
        (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
    ],
    ids=["RGB", "grey", "one bit", "16 bits", "grey, clear", "clear", "opaque", "half", "1×1"],
)
def test_a_picture_of_every_mode_is_what_a_person_sees(
    image: Image.Image, pixel: tuple[int, int, int]
) -> None:
    found = read(file_of(image))
    assert found.mode == "RGB"
    assert found.size == image.size
    assert found.getpixel((0, 0)) == pixel


def test_a_palette_with_a_clear_colour_is_white_there() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    found = read(file_of(image.convert("P"), transparency=image.convert("P").getpixel((0, 0))))
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((7, 0)) == (255, 0, 0)


def test_cmyk_is_converted() -> None:
    found = read(file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = found.getpixel((0, 0))  # type: ignore[misc]
    assert red > 200
    assert max(green, blue) < 60


def test_a_picture_that_says_so_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    found = read(file_of(image, "PNG", exif=exif))
    assert found.size == (8, 16)
    assert found.getpixel((0, 0)) == (0, 0, 0)
    assert found.getpixel((0, 15)) == (255, 255, 255)


BOMB = png(50_000, 50_000, chunk(b"IDAT", zlib.compress(bytes(1000))))
TEXT_BOMB = png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20), 9)))
PROFILE_BOMB = png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64 << 20), 9)))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (BOMB, TooLarge),
        (png(1, 1 << 21), TooLarge),
        (file_of(Image.new("1", (1025, 1024))), TooLarge),
        (png(0, 0), InvalidRequest),
        (TEXT_BOMB, InvalidRequest),
        (PROFILE_BOMB, InvalidRequest),
        (file_of(COLOURS)[:-100], InvalidRequest),
        (file_of(COLOURS)[:40], InvalidRequest),
        (file_of(COLOURS, "JPEG")[:400], InvalidRequest),
        (file_of(COLOURS).replace(b"IDAT", b"IDAX"), InvalidRequest),
        (file_of(COLOURS, "GIF"), InvalidRequest),
        (file_of(COLOURS, "TIFF"), InvalidRequest),
        (file_of(COLOURS, "BMP"), InvalidRequest),
        (file_of(COLOURS.convert("RGB"), "PDF"), InvalidRequest),
        (file_of(COLOURS.convert("RGB"), "EPS"), InvalidRequest),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", InvalidRequest),
        (b"PK\x03\x04" + bytes(100), InvalidRequest),
        (b"\x89PNG\r\n\x1a\n", InvalidRequest),
        (b"", InvalidRequest),
        (file_of(COLOURS, "PNG", save_all=True, append_images=[COLOURS] * 50), InvalidRequest),
        (
            file_of(COLOURS, "WEBP", save_all=True, append_images=[COLOURS.rotate(9)]),
            InvalidRequest,
        ),
        (file_of(COLOURS, "MPO", save_all=True, append_images=[COLOURS.rotate(9)]), InvalidRequest),
    ],
    ids=[
        *("50k×50k in 5 KB", "1×2M", "a pixel row too many", "0×0", "text bomb", "profile bomb"),
        *("truncated", "header alone", "half a JPEG", "bad chunk", "GIF", "TIFF", "BMP", "PDF"),
        *("EPS", "SVG", "ZIP", "signature alone", "empty", "APNG", "animated WebP", "MPO"),
    ],
)
def test_what_is_no_single_picture_of_a_bounded_size_costs_no_memory(
    data: bytes, kind: type[Exception]
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(kind) as refused:
            read(data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 << 20
    message = str(refused.value)
    assert message.startswith("image ")
    assert not any(word in message for word in ("0x", "PIL", "BytesIO", "Traceback"))


def test_a_picture_with_a_broken_checksum_is_refused() -> None:
    data = bytearray(file_of(COLOURS))
    data[data.index(b"IDAT") + 12] ^= 0xFF
    with pytest.raises(InvalidRequest):
        read(bytes(data))


def test_what_follows_a_picture_is_not_heeded() -> None:
    assert read(file_of(COLOURS) + b"PK\x03\x04" + bytes(1000)).size == COLOURS.size


def mask(image: Image.Image) -> Image.Image:
    return asyncio.run(pictures.read_mask("mask", file_of(image), LIMITS))


def test_a_mask_is_where_a_picture_is_clear_or_else_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 4, 8))
    painted = Image.new("RGB", (8, 8), "black")
    painted.paste("white", (0, 0, 4, 8))
    for given in (clear, painted, painted.convert("L"), painted.convert("1")):
        found = mask(given)
        assert found.mode == "L"
        assert [found.getpixel(at) for at in ((0, 0), (7, 7))] == [255, 0]


@pytest.mark.parametrize(
    ("over", "status"),
    [
        (Image.new("L", (32, 32), 255), 200),  # of another size, in its ratio
        (Image.new("L", (64, 32), 255), 400),
        (Image.new("L", (64, 64), 255), 200),
        (Image.new("RGBA", (64, 64), (0, 0, 0, 0)), 200),  # clear everywhere
        (Image.new("L", (64, 64), 0), 400),
        (Image.new("RGBA", (64, 64), (0, 0, 0, 255)), 400),  # opaque, and black
        (Image.new("L", (1, 1), 255), 200),
    ],
    ids=["smaller", "other ratio", "full", "clear", "empty", "opaque", "1×1"],
)
def test_a_mask_of_any_kind_works_or_is_refused(
    client: httpx.Client, over: Image.Image, status: int
) -> None:
    files = {
        "image": ("../../x.png", file_of(Image.new("RGB", (64, 64), "blue"))),
        "mask": ("/etc/passwd", file_of(over)),
    }
    answer = client.post("/v1/images/edits", data={"prompt": "a", "steps": "1"}, files=files)
    assert answer.status_code == status, answer.text
    assert status == 200 or "mask" in answer.json()["error"]["message"]


@pytest.mark.parametrize("side", [*range(1, 17), 100, 1000])
def test_a_picture_of_any_small_size_is_drawn_from(client: httpx.Client, side: int) -> None:
    """A picture of one pixel has crashed another server."""
    text = base64.b64encode(file_of(Image.new("RGB", (side, 1 + side // 2), "blue"))).decode()
    body = {"prompt": "a", "steps": 1, "image": text, "width": 64, "height": 64}
    assert client.post("/v1/generate", json=body).status_code == 200


@pytest.mark.parametrize(
    "image", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/x.png", "sha256:00"]
)
def test_a_picture_is_never_a_path_or_an_address(client: httpx.Client, image: str) -> None:
    for name in ("image", "mask"):
        body = {"prompt": "a", "steps": 1, "image": image, "mask": image}
        answer = client.post("/v1/generate", json=body)
        assert answer.status_code == 400, name
        assert "no picture" in answer.text or "base64" in answer.text


def test_a_picture_drawn_from_another_has_its_digest_alone(client: httpx.Client) -> None:
    text = base64.b64encode(file_of(Image.new("RGB", (64, 64), "blue"))).decode()
    body = {"prompt": "a", "steps": 1, "image": text}
    said = client.post("/v1/generate", json=body).json()
    assert said["request"]["image"].startswith("sha256:")
    assert len(said["images"][0]["b64_json"]) < 64 * 64 * 4 + 4000
