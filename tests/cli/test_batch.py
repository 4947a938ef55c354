"""sdfast batch as a user has it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdfast import cli

QUICK = ("--steps", "1", "--width", "64", "--height", "64", "--backend", "onnxruntime")


def batch(*words: str | Path) -> Result:
    """In this process; an exception that is not one clear sentence fails the test."""
    return CliRunner().invoke(cli.main, ["batch", *map(str, words)], catch_exceptions=False)


def test_a_sweep_becomes_pictures_a_grid_and_lines(tmp_path: Path) -> None:
    words = ("a red star", "--sampler", "euler,ddim", "--seed", "3,5,7", *QUICK, "--sheet")
    done = batch(*words, "--out", tmp_path)
    assert done.exit_code == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    assert all(file.is_file() for file in files)
    assert [file.name.partition("-")[0] for file in files] == ["a"] * 6 + ["grid", "sheet"]
    assert "6 pictures: 0 were there, 6 drawn" in done.stderr
    with Image.open(files[6]) as grid:
        assert grid.width < 3 * 64 + 100 < grid.height + 200  # samplers across, seeds down
    lines = [json.loads(line) for line in (tmp_path / "pictures.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [file.name for file in files[:6]]

    longer = ("a red star", "--sampler", "euler,ddim,lms", *words[3:])
    done = batch(*longer, "--out", tmp_path, "--json")
    assert "9 pictures: 6 were there, 3 drawn" in done.stderr
    assert [json.loads(line)["request"]["sampler"] for line in done.stdout.splitlines()] == [
        "lms"
    ] * 3


def test_rows_of_files_go_beside_prompts_and_failures_come_at_the_end(tmp_path: Path) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text('prompt,seed\n"red, round",1\na star,many\na ring,\n')
    done = batch("a red star", table, *QUICK, "--out", tmp_path / "made")
    assert done.exit_code == 1
    assert "3 pictures: 0 were there, 3 drawn" in done.stderr
    assert "prompts.csv row 3: seed is 'many'; it must be a whole number" in done.stderr
    lines = (tmp_path / "made" / "pictures.jsonl").read_text().splitlines()
    assert [
        (json.loads(line)["request"]["prompt"], json.loads(line)["seed"]) for line in lines
    ] == [
        ("a red star", 0),
        ("red, round", 1),
        ("a ring", 0),
    ]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    words = ("a red star", "--seed", "0,10,20,30,40,50,60,70,80,90", *QUICK[2:], "--steps", "20")
    process = subprocess.Popen(
        [sys.executable, "-m", "sdfast", "batch", *words, "--out", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        first = Path(process.stdout.readline().strip())  # one is there, nine are not
        drawn = first.stat().st_mtime_ns
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (1, 130)
    there = len(list(tmp_path.glob("*.png")))
    assert 1 <= there < 10
    assert list(tmp_path.glob(".*")) == []
    time.sleep(0.01)
    done = batch(*words, "--out", tmp_path)
    assert f"10 pictures: {there} were there, {10 - there} drawn" in done.stderr
    assert first.stat().st_mtime_ns == drawn
    lines = (tmp_path / "pictures.jsonl").read_text().splitlines()
    assert len({json.loads(line)["file"] for line in lines}) == len(lines) == 10


WRONG = {
    "nothing": ([], "a prompt or more, or a file"),
    "missing file": (["nothing.csv"], "nothing.csv cannot be read (No such file or directory)"),
    "all rows": (["x", "--steps", "5000"], "'x': steps is 5000; it must be"),
    "word for a number": (["x", "--steps", "5,many"], "--steps is 'many'; it must be a whole"),
    "unknown sampler": (["x", "--sampler", "eulr"], "did you mean 'euler'"),
    "word that is not there": (["a ring", "--replace", "red,blue"], "has no 'red' to replace"),
    "one word": (["a ring", "--replace", "ring"], "--replace is 'ring'; it must be the words"),
    "unknown format": (["x", "--format", "bmp"], "png, jpeg, jpg, webp"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_clear_sentence_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    words, expected = WRONG[name]
    out = tmp_path / "made"
    done = batch(*words, "--out", out)
    assert done.exit_code == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not out.exists()
