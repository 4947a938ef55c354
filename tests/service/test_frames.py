"""Messages between a service and its worker."""

import asyncio
import json
import socket
import struct
import threading

import pytest
from PIL import Image

from sdfast.service.frames import Frame, next_frame, packed, receive

PICTURES = (Image.linear_gradient("L").convert("RGB"), Image.new("RGB", (3, 5), "red"))
FRAMES = [Frame({"said": "stepped", "rows": 4}), Frame({"said": "drawn", "id": "é"}, PICTURES)]


def test_what_is_sent_is_received() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sending = threading.Thread(
            target=lambda: [ours.sendall(packed(frame)) for frame in FRAMES] and ours.close()
        )
        sending.start()
        for frame in FRAMES:
            found = receive(theirs)
            assert found.said == frame.said
            assert [p.tobytes() for p in found.pictures] == [p.tobytes() for p in frame.pictures]
        with pytest.raises(ConnectionError, match="gone"):
            receive(theirs)
        sending.join()


def test_the_service_reads_them_as_well() -> None:
    async def test() -> None:
        reader = asyncio.StreamReader()
        for frame in FRAMES:
            reader.feed_data(packed(frame))
        reader.feed_data(packed(FRAMES[1])[:100])
        reader.feed_eof()
        for frame in FRAMES:
            found = await next_frame(reader)
            assert found.said == frame.said
            assert [p.size for p in found.pictures] == [p.size for p in frame.pictures]
        with pytest.raises(ConnectionError, match="gone"):
            await next_frame(reader)

    asyncio.run(test())


def test_a_length_that_nobody_sends_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(struct.pack("!II", 2**31, 0))
        with pytest.raises(ConnectionError, match="2147483648 bytes"):
            receive(theirs)


def test_pictures_of_other_modes_are_sent_as_rgb() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(packed(Frame({}, (Image.new("L", (2, 2), 7),))))
        (found,) = receive(theirs).pictures
        assert (found.mode, found.getpixel((0, 0))) == ("RGB", (7, 7, 7))


def test_nothing_that_is_read_is_code() -> None:
    said = json.loads(packed(FRAMES[0])[8:])
    assert said == {"said": "stepped", "rows": 4, "pictures": []}
