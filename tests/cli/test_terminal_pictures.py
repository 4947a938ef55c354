"""Pictures in a terminal: what is written is read again by decoders of the three forms, and a
terminal, a pair of ends of the system's own, is asked what it can."""

from __future__ import annotations

import base64
import io
import os
import pty
import re
import sys
import threading
import zlib
from collections.abc import Iterator
from typing import TextIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sdfast.cli import terminal_pictures
from sdfast.cli.terminal_pictures import BLOCKS, KITTY, SIXEL, Screen, form

XTERM = {"TERM": "xterm-256color"}
TRUE = {**XTERM, "COLORTERM": "truecolor"}


def photograph(width: int, height: int) -> Image.Image:
    """Some of everything: gradients, an edge, noise."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width))
    pixels = np.stack([x * 255 // width, y * 255 // height, noise + 200 * (x > y)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def kitty_decoded(text: str) -> tuple[dict[str, str], Image.Image]:
    """What kitty reads of its messages: the first's keys, and the picture."""
    messages = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in messages) == text
    assert all(len(data) <= 4096 for _, data in messages)
    keys = [dict(pair.split("=") for pair in keys.split(",")) for keys, _ in messages]
    assert [k["m"] for k in keys] == ["1"] * (len(keys) - 1) + ["0"]
    pixels = zlib.decompress(base64.b64decode("".join(data for _, data in messages)))
    size = int(keys[0]["s"]), int(keys[0]["v"])
    return keys[0], Image.frombytes("RGB", size, pixels)


def sixel_decoded(text: str) -> NDArray[np.int64]:
    """What a terminal draws of sixels, [h, w, 3] in percent; −1 where nothing is drawn."""
    assert text.startswith("\x1bPq")
    assert text.endswith("\x1b\\")
    body = text[3:-2]
    width, height = map(int, re.findall(r'^"1;1;(\d+);(\d+)', body)[0])
    pixels = np.full((height, width, 3), -1)
    colours: dict[int, list[int]] = {}
    x = y = now = 0
    tokens = re.findall(r'"[\d;]+|#\d+;2;\d+;\d+;\d+|#\d+|!\d+[?-~]|[?-~]|\$|-', body)
    assert "".join(tokens) == body
    for token in tokens:
        if token[0] == "#" and ";" in token:
            number, _, *rgb = map(int, token[1:].split(";"))
            colours[number] = rgb
        elif token[0] == "#":
            now = int(token[1:])
        elif token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        elif token[0] != '"':
            count = int(token[1:-1]) if token[0] == "!" else 1
            bits = ord(token[-1]) - 63
            for bit in range(6):
                if bits >> bit & 1:
                    pixels[y + bit, x : x + count] = colours[now]
            x += count
    return pixels


@pytest.mark.parametrize("size", [(1, 1), (7, 6), (64, 48), (100, 33)])
def test_kittys_messages_hold_every_pixel(size: tuple[int, int]) -> None:
    picture = photograph(*size)
    keys, found = kitty_decoded(terminal_pictures.kitty(picture, 20, 10))
    assert (keys["c"], keys["r"], keys["q"], keys["C"]) == ("20", "10", "2", "1")
    assert found.tobytes() == picture.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (7, 6), (64, 48), (100, 33)])
def test_sixels_fill_the_picture_with_colours_near_its_own(size: tuple[int, int]) -> None:
    picture = photograph(*size)
    found = sixel_decoded(terminal_pictures.sixel(picture))
    assert (found >= 0).all()
    difference = np.abs(found * 2.55 - np.asarray(picture, dtype=float))
    # 128 colours for all of a picture with noise: what Pillow's median cut leaves, and 1 % steps.
    assert difference.mean() < 8


def test_sixels_of_few_colours_are_exact_and_short() -> None:
    picture = Image.new("RGB", (200, 60), (255, 0, 51))
    picture.paste((0, 102, 204), (50, 10, 150, 50))
    text = terminal_pictures.sixel(picture)
    assert (sixel_decoded(text) * 255 == np.asarray(picture, dtype=int) * 100).all()
    assert len(text) < 600  # 12,000 pixels: what repeats is counted


def test_blocks_are_two_pixels_a_character() -> None:
    picture = photograph(8, 6)
    text = terminal_pictures.blocks(picture, 8, 3)
    lines = text.split("\r\n")
    assert len(lines) == 3
    found = []
    for line in lines:
        assert line.endswith("\x1b[0m")
        cells = re.findall(r"\x1b\[38;2;(\d+;\d+;\d+);48;2;(\d+;\d+;\d+)m▀", line)
        found += [[list(map(int, cell[k].split(";"))) for cell in cells] for k in range(2)]
    assert found == np.asarray(picture).tolist()


class Terminal(io.StringIO):
    """An output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_nothing_is_shown_where_there_is_no_terminal() -> None:
    everything = {**TRUE, "KITTY_WINDOW_ID": "1"}
    assert form(io.StringIO(), everything) is None
    assert form(Terminal(), {**everything, "TERM": "dumb"}) is None
    assert form(Terminal(), {}) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({**XTERM, "KITTY_WINDOW_ID": "1"}, KITTY),
        ({"TERM": "xterm-kitty"}, KITTY),
        ({"TERM": "xterm-ghostty"}, KITTY),
        ({**TRUE, "TERM_PROGRAM": "ghostty"}, KITTY),
        ({**TRUE, "KITTY_WINDOW_ID": "1", "TMUX": "/tmp/x"}, BLOCKS),
        ({"TERM": "screen-256color", "COLORTERM": "24bit"}, BLOCKS),
        ({"TERM": "screen", "TERM_PROGRAM": "ghostty"}, None),
        (TRUE, BLOCKS),
        ({"TERM": "xterm-direct"}, BLOCKS),
        (XTERM, None),
    ],
)
def test_the_form_is_the_best_that_the_environment_names(
    environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody who could be asked
    assert form(Terminal(), environment) == expected


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, TextIO]]:
    """A terminal: the end that draws, as a descriptor, and the program's, which is standard input
    as well."""
    theirs, ours = pty.openpty()
    with open(ours, "w", encoding="utf-8") as output, open(ours, closefd=False) as source:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", source)
        yield theirs, output
    os.close(theirs)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"\x1b[?62;4;22c", SIXEL),
        (b"\x1b[?4c", BLOCKS),  # the first number is the terminal's own, 4 a VT132
        (b"\x1b[?64;14;40c", BLOCKS),
        (b"", BLOCKS),
    ],
)
def test_a_terminal_is_asked_for_sixels(
    ends: tuple[int, TextIO], answer: bytes, expected: str
) -> None:
    import termios

    theirs, output = ends
    before = termios.tcgetattr(theirs)
    asked: list[bytes] = []

    def answering() -> None:
        asked.append(os.read(theirs, 16))
        os.write(theirs, answer)

    terminal = threading.Thread(target=answering)
    terminal.start()
    assert form(output, TRUE) == expected
    terminal.join()
    assert asked == [b"\x1b[c"]
    assert termios.tcgetattr(theirs) == before


@pytest.mark.parametrize("how", [KITTY, SIXEL, BLOCKS])
def test_a_picture_takes_the_place_of_the_one_before(how: str) -> None:
    output = Terminal()
    screen = Screen(output, how)
    for k in range(2):
        screen.show(photograph(16, 16), f"step {k}")
    first, second = output.getvalue().split("step 0")
    rows = int(re.findall(r"\x1b\[(\d+)A", first)[0])
    assert first.startswith("\n" * rows)  # room, so that nothing scrolls
    assert re.match(rf"\r\x1b\[{rows}A\r\x1b7", second)  # back to the first's place
    for part in (first, second):
        inside = part.split("\x1b7")[1].split("\x1b8")[0]
        if how == KITTY:
            assert kitty_decoded(inside)[0]["r"] == str(rows)
        elif how == SIXEL:
            height, width, _ = sixel_decoded(inside).shape
            assert (height, width) == (16 * rows, 16 * rows)
        else:
            assert inside.count("\r\n") == rows - 1
        assert f"\x1b[{rows}B\r\x1b[2K" in part.split("\x1b8")[1]
    screen.close()
    assert output.getvalue().endswith("\x1b[2K")
