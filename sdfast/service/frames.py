"""Messages between a service and its worker, over a socket that only these two have: JSON, and
pictures as their bytes. Nothing that is read can be code.

A frame is the lengths of its two parts, the JSON and the bytes of all its pictures one after the
other. A picture in the JSON is its size: {"pictures": [[width, height], …]}, RGB.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

_HEAD = struct.Struct("!II")
_MOST = 1 << 30  # bytes of a part


@dataclass(frozen=True)
class Frame:
    """One message: what it says, and its pictures."""

    said: dict[str, Any]
    pictures: tuple[Image.Image, ...] = ()


def packed(frame: Frame) -> bytes:
    rgb = [picture.convert("RGB") for picture in frame.pictures]
    said = json.dumps({**frame.said, "pictures": [picture.size for picture in rgb]}).encode()
    pixels = [picture.tobytes() for picture in rgb]
    return b"".join([_HEAD.pack(len(said), sum(map(len, pixels))), said, *pixels])


def _unpacked(said: bytes, pixels: bytes) -> Frame:
    values: dict[str, Any] = json.loads(said)
    pictures, begin = list[Image.Image](), 0
    for width, height in values.pop("pictures"):
        end = begin + 3 * width * height
        pictures.append(Image.frombytes("RGB", (width, height), pixels[begin:end]))
        begin = end
    return Frame(values, tuple(pictures))


def _lengths(head: bytes) -> Sequence[int]:
    lengths: tuple[int, int] = _HEAD.unpack(head)
    if max(lengths) > _MOST:
        raise ConnectionError(f"a message of {max(lengths)} bytes")
    return lengths


def receive(connection: socket.socket) -> Frame:
    """The next message. Raises ConnectionError when there is none any more."""
    said, pixels = _lengths(_exactly(connection, _HEAD.size))
    return _unpacked(_exactly(connection, said), _exactly(connection, pixels))


def _exactly(connection: socket.socket, count: int) -> bytes:
    data, got = bytearray(count), 0
    view = memoryview(data)
    while got < count:
        more = connection.recv_into(view[got:])
        if more == 0:
            raise ConnectionError("the other side is gone")
        got += more
    return bytes(data)


async def next_frame(reader: asyncio.StreamReader) -> Frame:
    """As `receive`."""
    try:
        said, pixels = _lengths(await reader.readexactly(_HEAD.size))
        return _unpacked(await reader.readexactly(said), await reader.readexactly(pixels))
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the other side is gone") from error
