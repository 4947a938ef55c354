"""sdfast and diffusers measured beside each other on the demo checkpoint, each in its process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from sdfast.benchmarks import measurements, report
from sdfast.benchmarks.peers import comparison
from sdfast.benchmarks.peers.comparison import Options
from sdfast.errors import InvalidRequest, SdfastError

CHECKPOINT = Path(__file__).parents[2] / "export" / "demo" / "checkpoint"
DIFFUSERS = find_spec("diffusers") is not None
OPTIMUM = find_spec("optimum") is not None
# As quick on a busy machine, where threads of torch wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

SMALL = Options(
    bundle="demo",
    checkpoint=CHECKPOINT,
    peers=("sdfast", "diffusers", "optimum-onnx"),
    variants={"sdfast-halves": {"guidance_interval": [1.0, 20.0]}},
    load={"threads": 1, "precision": "fp32"},
    steps=4,
    runs=1,
    environments=Path("none"),
)
WORDS = (
    *("--checkpoint", CHECKPOINT, "--peers", "sdfast,diffusers,optimum-onnx", "--threads", "1"),
    *("--precision", "fp32"),
    *("--steps", "4", "--runs", "1", "--environments", "none"),
)


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdfast", "bench", "peers", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder that the command made for SMALL without its variant, and what it said."""
    out = tmp_path_factory.mktemp("ran") / "made"
    return out, bench(*WORDS, "--out", out)


@pytest.fixture(scope="module")
def measured(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """That folder; tests that change it copy it."""
    assert ran[1].returncode == 0, ran[1].stderr
    return ran[0]


def peers(out: Path) -> measurements.Results:
    return measurements.load(out / "results.json")


def test_each_peer_starts_twice_and_the_missing_are_skipped_with_a_reason(
    ran: tuple[Path, subprocess.CompletedProcess[str]], measured: Path
) -> None:
    files = [measured / name for name in ("results.json", "report.md", "peers.png")]
    assert ran[1].stdout.splitlines() == list(map(str, files))
    rounds = [(r.case, r.round) for r in peers(measured).records]
    every = ("sdfast", "diffusers", "optimum-onnx")
    assert rounds == [(case, round_) for round_ in (0, 1) for case in every]
    assert "sdfast" in peers(measured).cases
    if not OPTIMUM:
        reason = "optimum.onnxruntime is not installed: `make peers` installs it in none"
        assert f"optimum-onnx: {reason}" in ran[1].stderr
        assert f"- optimum-onnx: {reason}" in (measured / "report.md").read_text()
        assert [r.skipped for r in peers(measured).records if r.case == every[2]] == [reason] * 2


@pytest.mark.skipif(not DIFFUSERS, reason="diffusers is not installed")
def test_both_draw_the_same_picture_and_every_quantity_is_there(measured: Path) -> None:
    found = peers(measured)
    assert found.cases == ("sdfast", "diffusers")
    names = ("request", "step", "text_encoder", "unet", "vae_decoder", "first_step", "load")
    for case in found.cases:
        for name in (*(f"{name}_seconds" for name in names), "peak_bytes"):
            spread = found.spread(case, name)
            assert spread is not None, (case, name)
            assert spread.minimum > 0
        assert found.spread(case, "compile_seconds", first_start=True) is not None
    versions = {r.case: set(r.versions) for r in found.records if not r.skipped}
    assert versions["diffusers"] == {"python", "torch", "diffusers", "transformers"}
    memory = [found.spread(case, "peak_bytes") for case in found.cases]
    assert memory[0] is not None
    assert memory[1] is not None
    assert memory[0].median < memory[1].median  # no torch in it
    apart = report._pictures(found, measured)
    assert apart["diffusers"] == 0
    assert apart["sdfast"] < 1  # the same noise, sampler and weights; other seeds are 30 apart


def test_a_variant_is_measured_beside_what_is_there(measured: Path, tmp_path: Path) -> None:
    out = shutil.copytree(measured, tmp_path / "again")
    plan = comparison.plan(SMALL, out, "again")
    usable = [(task.case, task.round) for task in plan.todo if not task.unusable]
    left = [(case, k) for k in (0, 1) for case in ("sdfast-halves",)]
    assert usable == left
    comparison.run(plan)
    after = peers(out)
    assert "sdfast-halves" in after.cases
    request = after.settings("sdfast-halves")["options"]["request"]
    assert request == {"guidance_interval": [1.0, 20.0]}
    assert [r for r in after.records if r.case == "sdfast"] == [
        r for r in peers(measured).records if r.case == "sdfast"
    ]
    assert "| sdfast-halves |" in (out / "report.md").read_text()
    changed = replace(SMALL, variants={"sdfast-halves": {"guidance_rescale": 0.5}})
    again = comparison.plan(changed, out, "")
    assert [task.case for task in again.todo if not task.unusable] == ["sdfast-halves"] * 2
    more = comparison.plan(replace(SMALL, rounds=2), out, "")
    assert {task.round for task in more.todo if not task.unusable} == {2}


def test_a_stopped_run_keeps_what_is_done_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--checkpoint", CHECKPOINT, "--peers", "sdfast", "--threads", "1", "--out", out)
    many = ("--steps", "400", "--runs", "50")
    command = [sys.executable, "-m", "sdfast", "bench", "peers", *map(str, (*words, *many))]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell is born deaf to the interrupt.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        until = time.monotonic() + 60
        while not (out / "results.json").exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.3)  # into the second process
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        child = children.read_text().split() if children.exists() else []
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(30) == 130, said
    assert "keeps what is done, the same command goes on" in said
    assert "Traceback" not in said
    assert [(r.case, r.round) for r in peers(out).records] == [("sdfast", 0)]
    assert not any(Path(f"/proc/{pid}").exists() for pid in child)
    options = Options("demo", CHECKPOINT, ("sdfast",), load={"threads": 1}, steps=400, runs=50)
    assert [task.round for task in comparison.plan(options, out, "").todo] == [1]


def test_what_sdfast_loses_is_named(measured: Path) -> None:
    found = peers(measured)
    kept = [r for r in found.records if r.case == "sdfast"]
    quick = [
        replace(r, case="rival", quantities={k: (v[0] / 2,) for k, v in r.quantities.items()})
        for r in kept
    ]
    lines = list(report.lost(replace(found, records=(*kept, *quick))))
    assert "- a picture: rival needs 0.50 of what sdfast needs" in lines
    assert "- peak memory: rival needs 0.50 of what sdfast needs" in lines
    assert list(report.lost(replace(found, records=tuple(kept)))) == []


def test_an_environment_of_its_own_is_taken_where_there_is_one(tmp_path: Path) -> None:
    own = tmp_path / "optimum-onnx" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    options = replace(SMALL, environments=tmp_path)
    tasks = {task.case: task for task in comparison.plan(options, tmp_path / "out", "").todo}
    assert tasks["optimum-onnx"].python == own
    assert tasks["diffusers"].python == Path(sys.executable)
    assert tasks["sdfast"].python == Path(sys.executable)
    own.unlink()
    own.write_text("no Python")
    comparison._missing.cache_clear()  # which asks an environment once
    with pytest.raises(SdfastError, match=r"does not run .*`make peers`"):
        comparison.plan(options, tmp_path / "out", "")


def test_a_variant_is_read_with_its_types() -> None:
    name, options = comparison.variant("fast:cache=3,low_memory=true,bundle=./b,guidance=1.5")
    assert name == "fast"
    assert options == {"cache": 3, "low_memory": True, "bundle": "./b", "guidance": 1.5}
    for text in ("fast", "fast:", ":cache=3", "fast:cache", "fast:cache="):
        with pytest.raises(InvalidRequest, match="must be NAME:OPTION=VALUE"):
            comparison.variant(text)
    with pytest.raises(InvalidRequest, match="'a' is given twice"):
        comparison.variants(["a:cache=1", "b:cache=1", "a:cache=2"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"peers": ("difusers",)}, "did you mean 'diffusers'"),
        ({"checkpoint": Path("nowhere")}, "nowhere is no checkpoint in diffusers' layout"),
        ({"runs": 0}, "runs is 0; it must be 1 or more"),
        ({"rounds": 0}, "rounds is 0; it must be 1 or more"),
        ({"size": 100}, "100"),
        ({"steps": 0}, "steps is 0"),
        ({"bundle": "nothing"}, "no bundle 'nothing'"),
        ({"variants": {"diffusers": {"steps": 1}}}, "has the name of a peer"),
        ({"variants": {"../v": {"steps": 1}}}, "must be named by letters"),
        ({"variants": {"..": {"steps": 1}}}, "must be named by letters"),
        ({"variants": {"v": {"speed": 1}}}, "speed is no option of loading a bundle"),
        ({"variants": {"v": {"bundle": "nothing"}}}, "no bundle 'nothing'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    changed: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SdfastError, match=says):
        comparison.plan(replace(SMALL, **changed), tmp_path / "out", "")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--checkpoint", "nowhere", "--out", "x"], "is no checkpoint"),
        (["--checkpoint", str(CHECKPOINT), "--variant", "v", "--out", "x"], "must be NAME:"),
        (["--out", "x"], "--checkpoint"),
    ],
)
def test_a_mistake_is_one_clear_sentence(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = bench(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_checkpoint_is_another_folder(measured: Path, tmp_path: Path) -> None:
    out = shutil.copytree(measured, tmp_path / "again")
    other = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_note": "another"}))
    with pytest.raises(InvalidRequest, match=r"checkpoint_sha256.*cannot be compared"):
        comparison.plan(replace(SMALL, checkpoint=other), out, "")
