"""Grids and contact sheets: every picture whole and in its place, with words beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdfast import sheets
from sdfast.sheets import Grid

COLOURS = ("red", "lime", "blue", "yellow", "cyan", "magenta")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A picture of each colour."""
    made = {colour: tmp_path / f"{colour}.png" for colour in COLOURS}
    for colour, file in made.items():
        Image.new("RGB", (80, 60), colour).save(file)
    return made


def places(sheet: Image.Image) -> dict[str, tuple[int, int, int, int]]:
    """The box (left, top, right, bottom) of every colour."""
    found = {}
    for colour in COLOURS:
        plain = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        mask = Image.new("L", sheet.size)
        mask.putdata([255 * (pixel == plain) for pixel in sheet.get_flattened_data()])
        if box := mask.getbbox():
            found[colour] = box
    return found


def ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Dark pixels in a box."""
    return sum(sheet.crop(box).convert("L").histogram()[:64])


def test_a_grid_has_its_pictures_in_columns_and_rows_and_words_beside_them(
    files: dict[str, Path],
) -> None:
    cells = {(k % 3, k // 3): files[colour] for k, colour in enumerate(COLOURS)}
    del cells[2, 1]  # magenta could not be drawn
    of = Grid(("a title",), ("steps 5", "steps 10", "steps 20"), ("euler", "ddim"), cells)
    sheet = sheets.grid(of)
    found = places(sheet)
    assert set(found) == set(COLOURS) - {"magenta"}
    for left, top, right, bottom in found.values():
        assert (right - left, bottom - top) == (80, 60)  # whole, and nothing written over it
    for name, other in (("red", "yellow"), ("lime", "cyan")):
        assert found[name][0] == found[other][0]
        assert found[name][3] <= found[other][1]
    assert found["red"][2] <= found["lime"][0] < found["blue"][0]
    empty = (found["blue"][0] + 40, found["yellow"][1] + 30)
    assert sheet.getpixel(empty) == (0xDD, 0xDD, 0xDD)
    for left, top, right, _ in (found["red"], found["lime"], found["blue"]):
        assert ink(sheet, (left, top - 30, right, top))  # a label over each column
    for left, top, _, bottom in (found["red"], found["yellow"]):
        assert ink(sheet, (0, top, left, bottom))  # and before each row


def test_a_grid_too_large_shrinks_its_cells(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, "LARGEST", 80 * 60 * 2 // 4)  # half of both sides
    sheet = sheets.grid(Grid((), ("a", "b"), ("",), {(0, 0): files["red"], (1, 0): files["blue"]}))
    left, top, right, bottom = places(sheet)["blue"]
    assert (right - left, bottom - top) == (40, 30)


def test_contact_sheets_go_on_over_pages_with_a_caption_each(files: dict[str, Path]) -> None:
    captioned = [(files[colour], f"{colour} " * 30) for colour in COLOURS]
    first, second = sheets.contact_sheets(captioned, side=40, columns=2, rows=2)
    assert set(places(first)) == set(COLOURS[:4])
    assert set(places(second)) == set(COLOURS[4:])
    for page in (first, second):
        for left, top, right, bottom in places(page).values():
            assert (right - left, bottom - top) == (40, 30)
            assert ink(page, (left, bottom + 5, right, min(bottom + 60, page.height)))


@pytest.mark.parametrize("text", ["", "a", "one two three four", "Donaudampfschifffahrt" * 3])
def test_text_is_broken_into_lines_that_fit_and_lose_nothing(text: str) -> None:
    font = sheets._font(12)
    lines = sheets._wrapped(text, font, 60, lines=99)
    assert all(font.getlength(line) <= 60 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert len(sheets._wrapped(text, font, 60, lines=1)) <= 1
