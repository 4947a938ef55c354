"""The commands of the guides run as they stand, and draw the pictures that the guides show."""

from __future__ import annotations

import re
import shlex
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
        drawn, expected = (
            np.asarray(Image.open(file).convert("RGB"), np.int16)
            for file in (tmp_path / Path(name).name, DOCS / name)
        )
        assert drawn.shape == expected.shape, name
        # Backends and precisions differ in the last bits, which a long run makes more of.
        assert np.abs(drawn - expected).mean() < 6, name
