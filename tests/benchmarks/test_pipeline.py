"""The pipeline benchmark: a small real run on the demo bundle, and its report."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sdfast.benchmarks import measurements, pipeline, plots, processes, report
from sdfast.benchmarks.measurements import Record, Results
from sdfast.errors import SdfastError

SMALL = pipeline.Options(
    load={"threads": 1}, steps=2, batches=(1, 2), sizes=(64, 128), runs=1
)  # one thread is as quick on a busy machine
WORDS = ("--threads", "1", "--steps", "2", "--batch", "1,2", "--sizes", "64,128", "--runs", "1")
CASES = ("base", "batch 2", "size 64", "steps 1", "steps 4")


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdfast", "bench", "pipeline", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder that the command made for SMALL, and what it said."""
    out = tmp_path_factory.mktemp("ran") / "made"
    return out, bench(*WORDS, "--out", out)


@pytest.fixture(scope="module")
def measured(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """That folder; tests that change it copy it."""
    assert ran[1].returncode == 0, ran[1].stderr
    return ran[0]


def test_the_command_measures_every_case_and_lists_what_it_wrote(
    ran: tuple[Path, subprocess.CompletedProcess[str]], measured: Path
) -> None:
    assert "6 processes to measure, 0 there already" in ran[1].stderr
    files = [measured / name for name in ("results.json", "report.md", "scaling.png")]
    assert ran[1].stdout.splitlines() == list(map(str, files))
    found = measurements.load(files[0])
    assert found.benchmark == "pipeline"
    assert "`sdfast bench pipeline --threads 1" in found.commands[0]
    assert found.conditions["load"] == {"threads": 1}
    assert found.cases == CASES
    assert [r.round for r in found.records] == [0, 1, 1, 1, 1, 1]
    assert found.settings("batch 2")["count"] == 2
    assert found.settings("size 64")["width"] == 64
    assert found.settings("steps 4")["steps"] == 4


def test_quantities_fit_together(measured: Path) -> None:
    found = measurements.load(measured / "results.json")
    for record in found.records:
        assert set(record.versions) >= {"python", "sdfast", record.settings["backend"]}
        values = {name: sum(each) for name, each in record.quantities.items()}
        assert min(values[name] for name in values if name != "compile_seconds") > 0
        stages = sum(values[f"{stage}_seconds"] for stage in report.STAGES)
        assert 0 < stages <= values["request_seconds"]
        assert values["unet_seconds"] == pytest.approx(
            values["step_seconds"] * record.settings["steps"]
        )
        assert values["import_seconds"] + values["load_seconds"] < values["first_step_seconds"]
        # An interpreter with ONNX Runtime and the demo's weights: neither kilobytes nor gigabytes.
        assert 2**25 < values["peak_bytes"] < 2**31
    base = found.records[1].quantities
    assert base["first_step_seconds"][0] < base["first_request_seconds"][0]


def test_the_report_shows_every_case(measured: Path) -> None:
    text = (measured / "report.md").read_text()
    for words in ("## One picture, 128×128, 2 steps", "| vae decoder |", "first start"):
        assert words in text
    for row in ("\n| 64×64 |", "\n| 128×128 |", "\n| 1 |", "\n| 2 |", "\n| 4 |"):
        assert row in text
    assert "step ~ pixels^" in text
    assert "request ~ count^" in text
    assert "request ~ steps^" in text
    with Image.open(measured / "scaling.png") as image:
        assert image.width > 800


def test_a_run_of_the_same_options_measures_nothing_again(measured: Path, tmp_path: Path) -> None:
    out = shutil.copytree(measured, tmp_path / "again")
    (out / "report.md").unlink()
    before = (out / "results.json").read_bytes()
    plan = pipeline.plan(SMALL, out, "again")
    assert plan.todo == ()
    pipeline.run(plan)
    assert (out / "report.md").read_text() == (measured / "report.md").read_text()
    assert (out / "results.json").read_bytes() == before


def test_what_is_missing_is_measured_and_the_rest_kept(measured: Path, tmp_path: Path) -> None:
    out = shutil.copytree(measured, tmp_path / "again")
    found = measurements.load(out / "results.json")
    failed = replace(found.records[2], skipped="failed: for a test", quantities={})
    rest = (*found.records[:2], failed, *found.records[4:])  # without "size 64"
    measurements.save(replace(found, records=rest), out / "results.json")
    plan = pipeline.plan(SMALL, out, "again")
    assert [task.case for task in plan.todo] == ["batch 2", "size 64"]
    told: list[float] = []
    pipeline.run(plan, lambda cost, doing: told.append(cost))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(plan.cost)
    after = measurements.load(out / "results.json")
    assert set(after.cases) == set(CASES)
    assert len(after.records) == 6
    assert after.records[0] == found.records[0]
    assert [command[11:] for command in after.commands[1:]] == ["`again`"]


def test_sizes_and_steps_are_chosen_around_the_bundles_own(tmp_path: Path) -> None:
    plan = pipeline.plan(pipeline.Options(), tmp_path / "out", "")
    assert [task.case for task in plan.todo] == [
        *("base", "base", "batch 2", "batch 4", "batch 8"),
        *("size 64", "size 96", "size 192", "size 256", "steps 5", "steps 10", "steps 40"),
    ]


def test_a_process_that_fails_is_recorded_with_its_reason(tmp_path: Path) -> None:
    task = pipeline.plan(SMALL, tmp_path / "out", "").todo[1]
    load = {"bundle": str(tmp_path / "gone")}
    options = {"load": load, "request": {}}
    broken = replace(task, job=replace(task.job, options=options))
    record = processes.run(broken)
    assert record.skipped is not None
    assert record.skipped.startswith("failed: sdfast.errors.BundleError: there is no bundle")
    assert record.quantities == {}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"runs": 0}, "runs is 0; it must be 1 or more"),
        ({"steps": 0}, "steps is 0"),
        ({"batches": (0,)}, "count is 0"),
        ({"sizes": (100,)}, "100"),
        ({"bundle": "nothing"}, "no bundle 'nothing'"),
        ({"load": {"backend": "abacus"}}, "backend 'abacus' is unknown"),
        ({"load": {"speed": 11}}, "speed is no option of loading a bundle; use one of backend"),
        ({"request": {"colour": "red"}}, "unknown parameter 'colour'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    changed: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SdfastError, match=says):
        pipeline.plan(replace(SMALL, **changed), tmp_path / "out", "")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--batch", "two", "--out", "x"], "--batch is 'two'; it must be whole numbers"),
        (["--out", "/proc/x"], "cannot be made"),
        ([], "--out"),
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


def test_growth_is_fitted_from_the_cases_of_one_variable() -> None:
    def record(case: str, seconds: float, **settings: int) -> Record:
        known = {"width": 64, "height": 64, "count": 1, "steps": 10, **settings}
        quantities = {"request_seconds": (seconds,), "step_seconds": (seconds / known["steps"],)}
        return Record(case, 1, known, {}, None, quantities)

    found = Results(
        "pipeline",
        (),
        {},
        (
            record("base", 10.0),
            record("batch 4", 40.0, count=4),
            record("size 128", 160.0, width=128, height=128),
            record("steps 40", 20.0, steps=40),
        ),
    )
    assert report.exponent(found, "count", "request_seconds") == pytest.approx(1.0)
    assert report.exponent(found, "pixels", "step_seconds") == pytest.approx(2.0)
    assert report.exponent(found, "steps", "request_seconds") == pytest.approx(0.5)
    drawn = plots.scaling(found)
    assert drawn is not None
    with Image.open(io.BytesIO(drawn)) as image:
        assert len(image.convert("RGB").getcolors(2**24) or []) > 10  # not blank
    assert plots.scaling(replace(found, records=found.records[:1])) is None
    assert plots.peers(replace(found, records=())) is None
