"""The command line as a user has it: its output, its exit code, what is left behind. Most commands
run in this process, since one of their own has to import everything anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sdfast import cli, program, schedules
from sdfast.program import Program
from sdfast.schedules import NoiseSchedule

SD = ("scaled_linear", 0.00085, 0.012, 1000)
PROMPT = "a small red circle on a blue background"


def sdfast(*words: str | Path) -> Result:
    """An exception that is not one clear sentence fails the test."""
    return CliRunner().invoke(cli.main, list(map(str, words)), catch_exceptions=False)


def process(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdfast", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_generate_writes_a_picture_and_says_where_and_how_long(tmp_path: Path) -> None:
    file = tmp_path / "circle.png"
    done = process("generate", PROMPT, "--seed", "1", "--steps", "3", "--out", file)
    assert (done.returncode, done.stdout) == (0, f"{file}\n")
    assert all(word in done.stderr for word in ("text_encoder", "unet", "vae_decoder", "total"))
    with Image.open(file) as image:
        assert image.size == (128, 128)
        assert image.info["parameters"].startswith(f"{PROMPT}\nSteps: 3, Sampler: DPM++ 2M")


def test_from_repeats_a_picture_bit_by_bit(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.png" for name in "abc")
    assert sdfast("generate", PROMPT, "--steps", "3", "--out", first).exit_code == 0
    assert process("generate", "--from", first, "--out", second).returncode == 0
    assert sdfast("generate", "--from", first, "--steps", "4", "--out", third).exit_code == 0
    pictures = [Image.open(file) for file in (first, second, third)]
    assert pictures[0].tobytes() == pictures[1].tobytes() != pictures[2].tobytes()


def test_from_repeats_limited_and_rescaled_guidance(tmp_path: Path) -> None:
    first, second, plain = (tmp_path / f"{name}.png" for name in "abc")
    words = ("generate", PROMPT, "--steps", "4", "--seed", "3", "--guidance", "9")
    more = ("--guidance-rescale", "0.7", "--guidance-interval", "0.3,5")
    assert sdfast(*words, *more, "--out", first).exit_code == 0
    assert sdfast("generate", "--from", first, "--out", second).exit_code == 0
    assert sdfast(*words, "--out", plain).exit_code == 0
    pictures = [Image.open(file) for file in (first, second, plain)]
    assert pictures[0].info["sdfast"] == pictures[1].info["sdfast"]
    assert pictures[0].tobytes() == pictures[1].tobytes() != pictures[2].tobytes()


def test_from_uses_the_bundle_that_the_picture_was_made_with(tmp_path: Path, copied: Path) -> None:
    file, again = tmp_path / "a.png", tmp_path / "b.png"
    words = ("generate", "a red star", "--steps", "1", "--bundle")
    manifest = json.loads((copied / "bundle.json").read_text())
    (copied / "bundle.json").write_text(json.dumps(manifest | {"name": "elsewhere"}))
    assert sdfast(*words, copied, "--out", file).exit_code == 0
    done = sdfast("generate", "--from", file, "--out", again)
    assert done.exit_code == 2
    assert "no bundle 'elsewhere'" in done.stderr
    assert sdfast("generate", "--from", file, "--bundle", copied, "--out", again).exit_code == 0


def test_many_prompts_and_counts_go_into_a_folder_as_json_says(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\n\n  a green ring  \n")
    out = tmp_path / "made" / "here"
    done = sdfast(
        *("generate", "--prompts", prompts, "--count", "2", "--steps", "1", "--seed", "7"),
        *("--format", "webp", "--json", "--out", out),
    )
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["seed"] for row in rows] == [7, 8, 7, 8]
    assert [row["request"]["prompt"] for row in rows] == ["a red star"] * 2 + ["a green ring"] * 2
    assert sorted(str(f) for f in out.iterdir()) == sorted(row["file"] for row in rows)
    assert all(Path(row["file"]).suffix == ".webp" for row in rows)


def test_a_picture_is_decoded_in_tiles_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    words = ("generate", PROMPT, "--seed", "1", "--steps", "2", "--out")
    whole, one, four = (tmp_path / f"{name}.png" for name in ("whole", "one", "four"))
    for file, more in ((whole, ()), (one, ("--tile", "128")), (four, ("--tile", "96"))):
        assert sdfast(*words, file, *more).exit_code == 0
    pictures = [Image.open(file).tobytes() for file in (whole, one, four)]
    assert pictures[0] == pictures[1] != pictures[2]


def test_pictures_never_replace_others_in_a_folder(tmp_path: Path) -> None:
    for _ in range(2):
        sdfast("generate", "a red star", "--steps", "1", "--seed", "7", "--out", tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a-red-star-7-1.png", "a-red-star-7.png"]


WRONG = {
    "empty prompt": (["generate", ""], "prompt is empty"),
    "no prompt": (["generate"], "PROMPT, --prompts FILE or --from"),
    "huge prompt": (["generate", "red " * 5000], "takes 67 chunks of 75 tokens; 32 are"),
    "odd size": (["generate", "x", "--width", "100"], "try 96 or 128"),
    "huge size": (["generate", "x", "--height", "1000000"], "from 64 to"),
    "odd tile": (["generate", "x", "--tile", "100"], "tile is 100; it must be a multiple of 32"),
    "huge steps": (["generate", "x", "--steps", "100000"], "from 1 to 1000"),
    "NaN": (["generate", "x", "--guidance", "nan"], "from 0 to 100"),
    "rescale beyond 1": (["generate", "x", "--guidance-rescale", "2"], "from 0 to 1"),
    "interval of words": (["generate", "x", "--guidance-interval", "low"], "numbers with commas"),
    "interval of one": (["generate", "x", "--guidance-interval", "3"], "two noise levels"),
    "interval upside down": (["generate", "x", "--guidance-interval", "5,1"], "low < high"),
    "parameter without a value": (["generate", "x", "--sampler-parameter", "eta"], "NAME=VALUE"),
    "unknown parameter": (
        ["generate", "x", "--sampler", "ddim", "--sampler-parameter", "etta=1"],
        "did you mean 'eta'",
    ),
    "parameter out of range": (
        ["generate", "x", "--sampler", "ddim", "--sampler-parameter", "eta=2"],
        "a number from 0 to 1",
    ),
    "schedule's parameter": (
        ["generate", "x", "--schedule-parameter", "rho=-1"],
        "rho of schedule karras",
    ),
    "sigmas that rise": (["generate", "x", "--sigmas", "1,2,0"], "descend"),
    "sigmas of words": (["generate", "x", "--sigmas", "high,low"], "numbers with commas"),
    "sigmas and steps": (["generate", "x", "--sigmas", "5,1,0", "--steps", "3"], "leave out steps"),
    "noise beyond its path": (
        ["generate", "x", "--sampler", "dpmpp_sde", "--sigmas", "5,1,0.00000001,0"],
        "0 or from",
    ),
    "program of nothing": (["samplers", "--show", "dpm"], "sampler 'dpm' is unknown"),
    "negative seed": (["generate", "x", "--seed=-1"], "seed is -1"),
    "unknown sampler": (["generate", "x", "--sampler", "dpm"], "known: clyb"),
    "unknown schedule": (["generate", "x", "--schedule", "karas"], "did you mean 'karras'"),
    "unknown backend": (["generate", "x", "--backend", "cuda"], "backend 'cuda' is unknown"),
    "unknown format": (["generate", "x", "--format", "bmp"], "png, jpeg, jpg, webp"),
    "unknown suffix": (["generate", "x", "--out", "x.tiff"], "png, jpeg, jpg, webp"),
    "unknown rng": (["generate", "x", "--rng", "mt"], "philox, torch"),
    "missing bundle": (["generate", "x", "--bundle", "nothing"], "known: demo"),
    "missing picture": (["generate", "--from", "nothing.png"], "nothing.png cannot be read"),
    "missing prompts": (["generate", "--prompts", "nothing.txt"], "nothing.txt cannot be read"),
    "several into one": (["generate", "x", "--count", "2", "--out", "a.png"], "give a folder"),
    "unwritable": (["generate", "x", "--steps", "1", "--out", "/proc/x/y.png"], "/proc/x"),
    "word for a number": (
        ["generate", "x", "--steps", "many"],
        "--steps is 'many'; it must be a whole number",
    ),
    "unknown option": (["generate", "x", "--step", "3"], "--steps"),
    "unknown command": (["generat"], "generate"),
    "no bundle to show": (["info", "nothing"], "known: demo"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_clear_sentence_and_exit_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, expected = WRONG[name]
    monkeypatch.chdir(tmp_path)
    done = sdfast(*words)
    assert done.exit_code == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []  # nothing half done is left


def test_a_damaged_bundle_is_refused(copied: Path) -> None:
    (copied / "unet.onnx").write_bytes(b"")
    done = process("generate", "x", "--bundle", copied, "--out", copied.parent)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "unet.onnx" in done.stderr
    assert "damaged" in done.stderr


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from sdfast.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.argv = ['sdfast', 'generate', 'x', '--steps', '1', '--out', 'x.png']; main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert "x.png cannot be written (File too large)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_run_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdfast", "generate", "x", "--steps", "1000", "--count", "64"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "made")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in its background has them, and what they start, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        time.sleep(4)  # well into the run: it would take minutes
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode in (1, 130)
    assert "Traceback" not in errors
    assert list((tmp_path / "made").iterdir()) == []


def test_info_shows_networks_and_checks_them() -> None:
    done = sdfast("info")
    assert done.exit_code == 0
    assert all(word in done.stdout for word in ("unet", "text_encoder", "every checksum right"))
    assert json.loads(sdfast("info", "demo", "--json").stdout)["schema_version"] == 2


def test_info_compares_graphs_with_the_plain_ones_by_operator(copied: Path) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    graph = manifest["networks"]["unet"]["graph"]
    total = sum(graph["operators"].values())
    graph["options"] = ["fused_qkv"]
    graph["plain"] = graph["operators"] | {"MatMul": 98, "Neg": 2}
    (copied / "bundle.json").write_text(json.dumps(manifest))
    done = sdfast("info", copied, "--graph")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    before = total - graph["operators"]["MatMul"] + 100
    assert f"{before:,} → {total:,} operators of opset 23 (fused_qkv)" in lines
    assert "Neg 2 → 0 -2" in lines
    products = graph["operators"]["MatMul"]
    assert f"MatMul 98 → {products} {products - 98:+}" in lines


def test_info_shows_a_bundle_that_draws_nothing_by_itself(copied: Path) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    unet = manifest["networks"]["unet"] | {"precision": "fp16", "kept": ["conv_out", "norm"]}
    absent = dict.fromkeys(("betas", "context", "defaults"))
    changed = {"task": "control", "tokenizers": {}, "networks": {"controlnet": unet}}
    noted = {"notes": ["conv_out kept in float32: 7e4"]}
    (copied / "bundle.json").write_text(json.dumps(manifest | absent | changed | noted))
    done = sdfast("info", copied)
    assert done.exit_code == 0
    for words in ("task control", "fp16, 2 layers in fp32", "note: conv_out kept in float32: 7e4"):
        assert words in done.stdout


def refused(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_samplers_lists_them() -> None:
    found = json.loads(sdfast("samplers", "--json").stdout, parse_constant=refused)
    assert {"dpmpp_2m", "euler"} <= {row["name"] for row in found["samplers"]}
    rho = next(row for row in found["schedules"] if row["name"] == "karras")["parameters"]
    assert rho == {"rho": 7.0}
    assert "rho=7.0: a number from" in sdfast("samplers").stdout
    assert "dpmpp_2m" in sdfast("samplers").stdout


def test_samplers_shows_the_program_of_one() -> None:
    text = sdfast("samplers", "--show", "DPM++ 2M", "--steps", "4").stdout
    assert "x0 = 0.21681·x0 + 0.78319·x1" in text
    assert "7 instructions, 4 evaluations, 3 slots, 39 latents moved: 2.4 MiB" in text
    record = sdfast("samplers", "--show", "euler_ancestral", "--steps", "3", "--json").stdout
    sigmas = schedules.sigmas("karras", 3, NoiseSchedule.from_betas(*SD))
    assert Program.from_json(record) == program.trace("euler_ancestral", sigmas)
    done = sdfast("samplers", "--show", "dpm_adaptive")
    assert done.exit_code == 2
    assert "depends on the picture" in done.stderr


def test_parameters_and_sigmas_reach_the_picture_and_are_repeated(tmp_path: Path) -> None:
    first, again, plain = (tmp_path / f"{name}.png" for name in ("first", "again", "plain"))
    base = ("generate", "a red star", "--seed", "0", "--sampler", "ddim")
    own = ("--sampler-parameter", "eta=0.5", "--sigmas", "14.6,7,3,1,0.3,0")
    assert sdfast(*base, *own, "--out", first).exit_code == 0
    assert sdfast(*base, *own[2:], "--out", plain).exit_code == 0
    assert sdfast("generate", "--from", first, "--out", again).exit_code == 0
    pixels = [Image.open(file).tobytes() for file in (first, again, plain)]
    assert pixels[0] == pixels[1] != pixels[2]
    assert "eta: 0.5" in Image.open(first).info["parameters"]


def test_options_given_beside_from_win_over_all_that_hangs_on_them(tmp_path: Path) -> None:
    levels, eta = tmp_path / "levels.png", tmp_path / "eta.png"
    base = ("generate", "a red star", "--seed", "0", "--sampler", "ddim")
    assert sdfast(*base, "--sigmas", "5,1,0", "--out", levels).exit_code == 0
    own = ("--sampler-parameter", "eta=0.5", "--schedule-parameter", "rho=5", "--steps", "2")
    assert sdfast(*base, *own, "--out", eta).exit_code == 0
    for picture, *words in (
        (levels, "--steps", "3"),
        (levels, "--schedule", "normal"),
        (levels, "--sigmas", "7,3,1,0"),
        (eta, "--sampler", "euler"),
        (eta, "--schedule", "normal"),
        (eta, "--sigmas", "5,1,0"),
    ):
        done = sdfast("generate", "--from", picture, *words, "--out", tmp_path / "again.png")
        assert done.exit_code == 0, (words, done.stderr)


def test_a_sampler_shows_the_levels_that_a_request_visits() -> None:
    sigmas = json.loads(sdfast("samplers", "--show", "uni_pc", "--steps", "3", "--json").stdout)[
        "sigmas"
    ]
    longer = schedules.sigmas("karras", 4, NoiseSchedule.from_betas(*SD))
    assert sigmas == [*longer[:3], 0.0]


def test_doctor_says_what_is_usable() -> None:
    assert "usable, version" in sdfast("doctor").stdout
    assert "backends" in json.loads(sdfast("doctor", "--json").stdout)


def test_help_has_examples_and_completion_works() -> None:
    for words in (["--help"], ["generate", "--help"], ["export", "-h"]):
        done = sdfast(*words)
        assert done.exit_code == 0
        assert "sdfast generate" in done.stdout
    environment = os.environ | {"_SDFAST_COMPLETE": "bash_source"}
    command = Path(sys.executable).with_name("sdfast")
    done = subprocess.run([command], env=environment, capture_output=True, text=True)
    assert "complete" in done.stdout
