"""Many pictures on one: grids with labelled axes, and contact sheets with captions.

Pictures are given by their files and opened one at a time, so that a sheet takes its own memory
alone. Text is in the font that comes with Pillow, which has the letters of Latin script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8  # pixels, between all parts
LARGEST = 48_000_000  # pixels of a grid; cells shrink to fit
_EMPTY = "#dddddd"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Grid:
    """Labels of columns and rows, and the files by (column, row); where there is none the cell is
    grey. Titles stand above, a line each."""

    titles: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    files: Mapping[tuple[int, int], Path]


def grid(of: Grid) -> Image.Image:
    """The grid as one picture: cells have the size of the largest of its pictures."""
    width, height = _cell(of)
    font = _font(max(12, min(width, height) // 14))
    left = max((_extent(label, font, width)[0] for label in of.rows), default=0)
    left += MARGIN if left else 0
    titles = [
        line
        for title in of.titles
        for line in _wrapped(title, font, left + width * len(of.columns))
    ]
    line = _line(font)
    header = max((_extent(label, font, width)[1] for label in of.columns), default=0)
    top = MARGIN + (line * len(titles) + MARGIN if titles else 0) + header + MARGIN
    size = (
        MARGIN + left + len(of.columns) * (width + MARGIN),
        top + len(of.rows) * (height + MARGIN),
    )
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for k, title in enumerate(titles):
        pen.text((MARGIN, MARGIN + k * line), title, "black", font)
    for column, label in enumerate(of.columns):
        x = MARGIN + left + column * (width + MARGIN)
        _write(pen, label, font, (x, top - MARGIN - header, width, header))
    for row, label in enumerate(of.rows):
        y = top + row * (height + MARGIN)
        _write(pen, label, font, (MARGIN, y, left - MARGIN, height))
        for column in range(len(of.columns)):
            x = MARGIN + left + column * (width + MARGIN)
            _place(sheet, of.files.get((column, row)), (x, y, width, height))
    return sheet


def _cell(of: Grid) -> tuple[int, int]:
    """The size of cells in pixels."""
    sizes = [_size(file) for file in set(of.files.values())]
    width, height = (max(sides) for sides in zip(*sizes, strict=True)) if sizes else (128, 128)
    whole = width * height * len(of.columns) * len(of.rows)
    scale = min(1.0, math.sqrt(LARGEST / whole))
    return max(16, int(width * scale)), max(16, int(height * scale))


def contact_sheets(
    pictures: Sequence[tuple[Path, str]], side: int = 192, columns: int = 6, rows: int = 6
) -> list[Image.Image]:
    """Pages of thumbnails of at most `side` pixels, each with its caption in three lines."""
    pages = [pictures[k : k + columns * rows] for k in range(0, len(pictures), columns * rows)]
    return [_page(page, side, columns) for page in pages]


def _page(pictures: Sequence[tuple[Path, str]], side: int, columns: int) -> Image.Image:
    font = _font(12)
    side = min(side, max(max(_size(file)) for file, _ in pictures))
    step = (side + MARGIN, side + 3 * _line(font) + 2 * MARGIN)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (MARGIN + columns * step[0], MARGIN + rows * step[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (file, caption) in enumerate(pictures):
        x, y = MARGIN + k % columns * step[0], MARGIN + k // columns * step[1]
        _place(sheet, file, (x, y, side, side))
        for number, text in enumerate(_wrapped(caption, font, side, lines=3)):
            pen.text((x, y + side + 2 + number * _line(font)), text, "black", font)
    return sheet


def _place(sheet: Image.Image, file: Path | None, box: tuple[int, int, int, int]) -> None:
    """Puts a picture into the middle of a box (x, y, width, height), smaller where it must be."""
    x, y, width, height = box
    if file is None:
        sheet.paste(_EMPTY, (x, y, x + width, y + height))
        return
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if image.width > width or image.height > height:
        image.thumbnail((width, height), Image.Resampling.LANCZOS)
    sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _line(font: Font) -> int:
    """The height of a line."""
    return math.ceil(font.getbbox("Ág")[3] * 1.2)


def _extent(label: str, font: Font, width: int) -> tuple[int, int]:
    lines = _wrapped(label, font, width)
    return math.ceil(max(map(font.getlength, lines), default=0)), _line(font) * len(lines)


def _write(
    pen: ImageDraw.ImageDraw, label: str, font: Font, box: tuple[int, int, int, int]
) -> None:
    """Writes into the middle of a box (x, y, width, height)."""
    x, y, width, height = box
    lines = _wrapped(label, font, width)
    y += (height - len(lines) * _line(font)) // 2
    for number, text in enumerate(lines):
        start = x + (width - font.getlength(text)) / 2
        pen.text((start, y + number * _line(font)), text, "black", font)


def _wrapped(text: str, font: Font, width: float, lines: int = 8) -> list[str]:
    """The text in lines of at most that width, broken between words where that can be; what does
    not fit into so many lines is left out."""
    found: list[str] = []
    rest = text.split()
    line = ""
    while rest:
        longer = f"{line} {rest[0]}".strip()
        if font.getlength(longer) <= width:
            line = longer
            rest.pop(0)
        elif line:
            found.append(line)
            line = ""
        else:  # one word that is too long
            fitting = next(
                (k for k in range(len(rest[0]) - 1, 0, -1) if font.getlength(rest[0][:k]) <= width),
                1,
            )
            found.append(rest[0][:fitting])
            rest[0] = rest[0][fitting:]
            if not rest[0]:
                rest.pop(0)
    found += [line] if line else []
    if len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1][:-1] + "…"]
    return found
