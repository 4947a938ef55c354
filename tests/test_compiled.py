"""Compiled networks in the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sdfast import compiled
from sdfast.errors import StoreWarning

KEY = {"network": "abc", "version": "1"}


def write(folder: Path) -> None:
    (folder / "network.bin").write_bytes(b"compiled")


def never(_: Path) -> None:
    raise AssertionError("it is there already")


def test_an_entry_is_built_once_for_its_key(tmp_path: Path) -> None:
    made = compiled.entry(tmp_path, KEY, write)
    assert made is not None
    assert (made / "network.bin").read_bytes() == b"compiled"
    assert compiled.entry(tmp_path, dict(reversed(KEY.items())), never) == made
    assert compiled.entry(tmp_path, {**KEY, "version": "2"}, write) != made


@pytest.mark.parametrize(
    "damage", ["altered", "shortened", "missing", "foreign", "added", "no json"]
)
def test_a_damaged_or_foreign_entry_is_made_anew_with_a_warning(
    tmp_path: Path, damage: str
) -> None:
    made = compiled.entry(tmp_path, KEY, write)
    assert made is not None
    file, record = made / "network.bin", made / "entry.json"
    if damage == "altered":
        file.write_bytes(b"c0mpiled")
    elif damage == "shortened":
        file.write_bytes(b"comp")
    elif damage == "missing":
        file.unlink()
    elif damage == "added":
        (made / "more.bin").write_bytes(b"")
    elif damage == "foreign":
        record.write_text(record.read_text().replace("abc", "abd"))
    else:
        record.write_text("{")
    with pytest.warns(StoreWarning, match="is damaged: it is made anew"):
        again = compiled.entry(tmp_path, KEY, write)
    assert again == made
    assert file.read_bytes() == b"compiled"
    assert json.loads(record.read_text())["key"] == KEY


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        compiled.entry(tmp_path, KEY, fail)
    assert [f for f in (tmp_path / "engines").iterdir() if f.is_dir()] == []
    assert compiled.entry(tmp_path, KEY, write) is not None


def test_two_at_once_build_one(tmp_path: Path) -> None:
    builds = []

    def slow(folder: Path) -> None:
        builds.append(folder)
        time.sleep(0.3)
        write(folder)

    threads = [
        threading.Thread(target=compiled.entry, args=(tmp_path, KEY, slow)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_a_build_that_was_killed_is_done_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from sdfast import compiled\n"
        "def build(folder):\n"
        "    (folder / 'network.bin').write_bytes(b'half')\n"
        "    os._exit(9)\n"
        f"compiled.entry(pathlib.Path(sys.argv[1]), {KEY!r}, build)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    made = compiled.entry(tmp_path, KEY, write)
    assert made is not None
    assert (made / "network.bin").read_bytes() == b"compiled"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_store_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.warns(StoreWarning, match="set SDFAST_HOME"):
        assert compiled.entry(tmp_path, KEY, write) is None


def test_a_store_whose_place_is_taken_by_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.warns(StoreWarning, match="set SDFAST_HOME"):
        assert compiled.entry(tmp_path / "store", KEY, write) is None


def test_the_command_line_says_it_in_one_line_and_draws(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    words = ["generate", "a red star", "--steps", "1", "--backend", "openvino", "--out"]
    done = subprocess.run(
        [sys.executable, "-m", "sdfast", *words, str(tmp_path / "star.png")],
        env={**os.environ, "SDFAST_HOME": str(tmp_path / "store")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert (tmp_path / "star.png").is_file()
    first, *_ = done.stderr.splitlines()
    assert first.startswith(f"sdfast: the store {tmp_path / 'store'} cannot be written")
    assert "Warning" not in done.stderr


def test_an_entry_is_renewed_whole(tmp_path: Path) -> None:
    first = compiled.renewed(tmp_path, KEY, write)
    assert first == compiled.entry(tmp_path, KEY, never)

    def other(folder: Path) -> None:
        (folder / "other.bin").write_bytes(b"anew")

    assert compiled.renewed(tmp_path, KEY, other) == first
    assert first is not None
    assert sorted(file.name for file in first.iterdir()) == ["entry.json", "other.bin"]
    assert compiled.entry(tmp_path, KEY, never) == first

    def fails(folder: Path) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        compiled.renewed(tmp_path, KEY, fails)
    assert compiled.entry(tmp_path, KEY, never) == first
