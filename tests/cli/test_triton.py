"""sdfast export-triton as a user has it."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from sdfast import cli


def test_it_prints_the_folders_that_it_made(tmp_path: Path) -> None:
    words = ("export-triton", "demo", str(tmp_path / "models"), "--name", "shapes")
    done = CliRunner().invoke(cli.main, [*words, "--network", "vae_decoder"])
    assert done.exit_code == 0, done.output
    made = [Path(line) for line in done.stdout.splitlines()]
    assert [folder.name for folder in made] == ["shapes", "shapes_vae_decoder"]
    assert all((folder / "config.pbtxt").is_file() for folder in made)
    again = CliRunner().invoke(cli.main, words)
    assert again.exit_code == 2
    assert "is there already: remove it, or give another --name" in again.stderr
