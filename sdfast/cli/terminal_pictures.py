"""Pictures in a terminal: kitty's graphics protocol, sixels, or half blocks in 24-bit colour.

kitty   https://sw.kovidgoyal.net/kitty/graphics-protocol/
sixel   DEC STD 070, chapter 9; with VT340's raster attributes
blocks  ▀ with a foreground and a background colour: two pixels a character
"""

from __future__ import annotations

import base64
import os
import re
import select
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TextIO

from PIL import Image

KITTY, SIXEL, BLOCKS = "kitty", "sixel", "blocks"
_KITTIES = {"ghostty", "kitty"}  # terminals with its protocol, as TERM_PROGRAM and TERM name them
_MULTIPLEXERS = ("tmux", "screen")  # they hand on neither of the two protocols by themselves
_CHUNK = 4096  # bytes of base64 in one of kitty's messages
_ID = 7301  # of the picture, so that the next takes its place
_COLOURS = 128  # of a sixel picture
_ANSWER_SECONDS = 0.2
_ROWS = 16  # of characters, the height of a picture


def form(output: TextIO, environment: Mapping[str, str] = os.environ) -> str | None:
    """How pictures can be shown there; None for a file, a pipe and a terminal that has no way."""
    term = environment.get("TERM", "")
    if not output.isatty() or term in ("", "dumb"):
        return None
    program = environment.get("TERM_PROGRAM", "").lower()
    inside = "TMUX" in environment or program in _MULTIPLEXERS or term.startswith(_MULTIPLEXERS)
    if not inside:
        if "KITTY_WINDOW_ID" in environment or {program, term.removeprefix("xterm-")} & _KITTIES:
            return KITTY
        if sys.stdin.isatty() and has_sixels(_ask(output)):
            return SIXEL
    colours = environment.get("COLORTERM", "")
    return BLOCKS if colours in ("truecolor", "24bit") or "direct" in term else None


def has_sixels(answer: bytes) -> bool:
    """Whether a terminal's primary device attributes, ESC [ ? 62 ; 4 ; … c, name sixels."""
    found = re.search(rb"\x1b\[\?([\d;]*)c", answer)
    return found is not None and b"4" in found[1].split(b";")[1:]


def _ask(output: TextIO) -> bytes:
    """What the terminal answers when it is asked for its attributes; empty where it does not."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    answer = b""
    try:
        tty.setcbreak(descriptor)
        output.write("\x1b[c")
        output.flush()
        while select.select([descriptor], [], [], _ANSWER_SECONDS)[0]:
            answer += os.read(descriptor, 256)
            if answer.endswith(b"c"):
                break
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
    return answer


def kitty(picture: Image.Image, columns: int, rows: int) -> str:
    """The picture over so many columns and rows of characters, in place of the one before. The
    cursor stays."""
    width, height = picture.size
    data = base64.standard_b64encode(zlib.compress(picture.convert("RGB").tobytes())).decode()
    chunks = [data[k : k + _CHUNK] for k in range(0, len(data), _CHUNK)]
    about = f"a=T,f=24,o=z,s={width},v={height},i={_ID},p=1,c={columns},r={rows},C=1,q=2,"
    return "".join(
        f"\x1b_G{about if k == 0 else ''}m={int(k < len(chunks) - 1)};{chunk}\x1b\\"
        for k, chunk in enumerate(chunks)
    )


def sixel(picture: Image.Image) -> str:
    """The picture in its own pixels. The cursor moves below it."""
    quantized = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    width, height = quantized.size
    indices, palette = quantized.tobytes(), quantized.getpalette() or []
    used = sorted(set(indices))
    colours = "".join(
        f"#{c};2;" + ";".join(str(round(v * 100 / 255)) for v in palette[3 * c : 3 * c + 3])
        for c in used
    )
    bands = (_band(indices, width, top, min(top + 6, height)) for top in range(0, height, 6))
    return f'\x1bPq"1;1;{width};{height}{colours}{"-".join(bands)}\x1b\\'


def _band(indices: bytes, width: int, top: int, bottom: int) -> str:
    """Six rows of pixels: of each colour in them a line of characters, whose bits are pixels."""
    lines: dict[int, bytearray] = {}
    for bit in range(bottom - top):
        row = indices[(top + bit) * width : (top + bit + 1) * width]
        for colour in set(row):
            line = lines.setdefault(colour, bytearray(width))
            here = row.translate(_bit(colour, bit))
            line[:] = (int.from_bytes(line) | int.from_bytes(here)).to_bytes(width)
    return "$".join(f"#{colour}{_shortened(line)}" for colour, line in lines.items())


@cache
def _bit(colour: int, bit: int) -> bytes:
    """A table that makes that bit of the colour, and nothing of others."""
    return bytes(1 << bit if k == colour else 0 for k in range(256))


def _shortened(line: bytearray) -> str:
    """The characters of six pixels each, what repeats written as ! and its number."""
    text = bytes(63 + bits for bits in line).decode().rstrip("?")
    return re.sub(r"(.)\1{3,}", lambda same: f"!{len(same[0])}{same[1]}", text)


def blocks(picture: Image.Image, columns: int, rows: int) -> str:
    """The picture in so many columns and rows of characters."""
    pixels = picture.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX).tobytes()
    colours = [";".join(map(str, pixels[k : k + 3])) for k in range(0, len(pixels), 3)]
    lines = [colours[k : k + columns] for k in range(0, len(colours), columns)]
    return "\r\n".join(
        "".join(f"\x1b[38;2;{upper};48;2;{lower}m▀" for upper, lower in zip(*pair, strict=True))
        + "\x1b[0m"
        for pair in zip(lines[::2], lines[1::2], strict=True)
    )


class Screen:
    """A place on a terminal whose picture, and the line of text below it, are replaced by the next.

    how: what `form` says
    """

    def __init__(self, output: TextIO, how: str) -> None:
        self._output, self._how = output, how
        self._rows = 0  # of the picture that is shown

    def show(self, picture: Image.Image, text: str = "") -> None:
        columns, rows = _extent(picture.size, self._output)
        begin = f"\x1b[{self._rows}A\r" if self._rows else ""
        if rows > self._rows:  # room below, so that nothing scrolls while it is drawn
            begin += "\n" * rows + f"\x1b[{rows}A\r"
        self._rows = rows
        self._output.write(begin + "\x1b7" + self._drawn(picture, columns, rows) + "\x1b8")
        self._output.write(f"\x1b[{rows}B\r\x1b[2K{text}\r")
        self._output.flush()

    def _drawn(self, picture: Image.Image, columns: int, rows: int) -> str:
        if self._how == KITTY:
            return kitty(picture, columns, rows)
        if self._how == BLOCKS:
            return blocks(picture, columns, rows)
        width, height = _character(self._output)
        return sixel(picture.resize((columns * width, rows * height), Image.Resampling.BICUBIC))

    def close(self) -> None:
        """Leaves the picture, and the cursor on a line of its own below it."""
        if self._rows:
            self._output.write("\x1b[2K")
            self._output.flush()
        self._rows = 0


@contextmanager
def screen(output: TextIO, how: str) -> Iterator[Screen]:
    """A Screen that is closed whatever happens."""
    opened = Screen(output, how)
    try:
        yield opened
    finally:
        opened.close()


def _extent(size: tuple[int, int], output: TextIO) -> tuple[int, int]:
    """The columns and rows of characters that a picture takes, which fit and keep its shape."""
    width, height = _character(output)
    terminal = shutil.get_terminal_size()
    rows = max(1, min(_ROWS, terminal.lines - 2))
    columns = max(1, round(rows * height / width * size[0] / size[1]))
    if columns > terminal.columns:
        rows = max(1, rows * terminal.columns // columns)
        columns = terminal.columns
    return columns, rows


def _character(output: TextIO) -> tuple[int, int]:
    """Width and height of a character in pixels, as the terminal says; else the usual."""
    import fcntl
    import termios

    try:
        answer = fcntl.ioctl(output.fileno(), termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return 8, 16
    lines, columns, width, height = struct.unpack("HHHH", answer)
    if not (lines and columns and width >= columns and height >= lines):
        return 8, 16
    return width // columns, height // lines
