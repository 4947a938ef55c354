"""sdfast replay as a user has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

QUICK = ("--steps", "1", "--width", "64", "--height", "64", "--seed", "1")
EXACT = ("--backend", "onnxruntime")


def sdfast(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdfast", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_picture_of_generate_and_of_batch_is_the_same(tmp_path: Path) -> None:
    one, several = tmp_path / "a.png", tmp_path / "several"
    assert sdfast("generate", "a red star", *QUICK, *EXACT, "--out", one).returncode == 0
    words = ("batch", "a red star", "--count", "2", *QUICK, *EXACT, "--out", several)
    assert sdfast(*words).returncode == 0
    for file in (one, *several.glob("*.png")):
        done = sdfast("replay", file)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{file}: the same, bit for bit (onnxruntime 1.")


def test_a_picture_that_differs_exits_with_1_and_says_how_far(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    assert sdfast("generate", "a red star", *QUICK, *EXACT, "--out", file).returncode == 0
    with Image.open(file) as image:
        info = PngInfo()
        info.add_itxt("sdfast", image.info["sdfast"])
        image.putpixel((0, 0), (0, 0, 0))
        image.save(file, pnginfo=info)
    done = sdfast("replay", file)
    assert done.returncode == 1, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"{file}: differs: 1 of 4096 pixels, by ")
    assert rest == ["    the file was changed after it was drawn: it has other pixels than then"]
    done = sdfast("replay", file, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["same"], found["difference"]["pixels"]) == (1, False, 1)


def test_what_cannot_be_drawn_again_exits_with_2_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(file)
    done = sdfast("replay", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "carries no request of sdfast" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_generate_repeats_a_picture_of_a1111(tmp_path: Path) -> None:
    file, again = tmp_path / "a1111.png", tmp_path / "again.png"
    info = PngInfo()
    values = "Steps: 2, Sampler: Euler a, Schedule type: Karras, CFG scale: 3, Seed: 7"
    info.add_text("parameters", f"a red star\nNegative prompt: blue\n{values}, Size: 64x64")
    Image.new("RGB", (64, 64)).save(file, pnginfo=info)
    done = sdfast("generate", "--from", file, *EXACT, "--out", again)
    assert done.returncode == 0, done.stderr
    with Image.open(again) as image:
        assert image.size == (64, 64)
        text = image.info["parameters"]
    assert text.startswith(f"a red star\nNegative prompt: blue\n{values}, Size: 64x64, Model: demo")
    assert sdfast("replay", again).returncode == 0
