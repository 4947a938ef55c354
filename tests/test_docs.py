"""The commands of the guides run as they stand, and draw the pictures that the guides show."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sdfast import cli

DOCS = Path(__file__).parent.parent / "docs"
COMMAND = re.compile(r"^    ((?:sdfast (?:generate|batch)|python -c) .*)$", re.MULTILINE)
SHOWN = re.compile(r"!\[[^\]]+\]\(((?:pictures/)?[\w-]+\.png)\)")


def run(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "python":
        exec(words[1], {})
        return
    done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def close(drawn: Path, shown: Path) -> None:
    got, want = (np.asarray(Image.open(f).convert("RGB"), np.int16) for f in (drawn, shown))
    assert got.shape == want.shape, shown
    apart = np.abs(got - want).mean(2)
    rows, columns = (side // 32 for side in apart.shape)
    blocks = apart[: rows * 32, : columns * 32].reshape(rows, 32, columns, 32).mean((1, 3))
    # Backends and precisions differ in the last bits, which a long run makes more of. A small shape
    # is little of a large picture, but much of a block.
    assert apart.mean() < 3, shown
    assert blocks.max() < 25, shown


@pytest.mark.parametrize("page", ["pictures", "control", "prompts", "lora"])
def test_the_commands_of_a_page_draw_its_pictures(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export").symlink_to(DOCS.parent / "export")
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    commands = [c for c in COMMAND.findall(text) if "--bundle ./" not in c]
    assert commands
    for command in commands:
        run(command)
    shown = SHOWN.findall(text)
    assert shown
    for name in shown:
        close(tmp_path / Path(name).name, DOCS / name)


def test_the_sweep_of_the_guide_is_its_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *_ = COMMAND.findall((DOCS / "batches.md").read_text(encoding="utf-8"))
    run(command)
    (grid,) = (tmp_path / "sweep").glob("grid*.png")
    close(grid, DOCS / "batches.png")


def test_the_previews_of_the_guide_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "previews.md").read_text(encoding="utf-8")
    block = text[text.index("    import sdfast") : text.index("## In a terminal")]
    exec(textwrap.dedent(block), {})
    drawn = [tmp_path / f"preview-{k}.png" for k in (2, 4, 6, 8, 10)]
    assert sorted(tmp_path.glob("*.png")) == sorted(drawn)
    first, last = (np.asarray(Image.open(drawn[k]), np.int16) for k in (0, -1))
    assert np.abs(first - last).mean() > 1  # it comes out of the noise
    red, _, blue = last[64, 64]
    assert red > blue + 50  # a red star


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "faults.md").read_text(encoding="utf-8")))
    tests = Path(__file__).parent.rglob("test_*.py")
    there = {name for file in tests for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert len(named) > 60
    assert named <= there, named - there
