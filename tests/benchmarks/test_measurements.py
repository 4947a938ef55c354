"""What is read from measured values, the file that keeps them, and two of them compared."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sdfast.benchmarks import compare, measurements, processes
from sdfast.benchmarks.measurements import FIRST_START, Record, Results, spread
from sdfast.benchmarks.peers.protocol import Job
from sdfast.errors import InvalidRequest, OutputError

CONDITIONS = {"bundle": "demo", "runs": 3, "machine": "one", "versions": {"python": "3.12"}}


def record(case: str, round_: int = 1, skipped: str | None = None, **values: float) -> Record:
    found = {name: (value, value, value) for name, value in values.items()}
    return Record(case, round_, {"steps": 20}, {"torch": "2"}, skipped, found)


def results(*records: Record) -> Results:
    return Results("peers", ("2030-01-02 `sdfast bench peers`",), CONDITIONS, records)


# --- values ---------------------------------------------------------------------------------------


def test_the_spread_of_five_values() -> None:
    found = spread([4.0, 1.0, 2.0, 100.0, 3.0])
    assert (found.count, found.median, found.minimum, found.maximum) == (5, 3.0, 1.0, 100.0)
    assert (found.lower_quartile, found.upper_quartile) == (2.0, 4.0)
    one = spread([7.0])
    assert {one.median, one.minimum, one.maximum, one.lower_quartile, one.upper_quartile} == {7.0}


@pytest.mark.parametrize("power", [-1.0, 0.5, 1.0, 2.0])
def test_a_power_law_gives_its_exponent(power: float) -> None:
    points = [(x, 0.3 * x**power) for x in (64.0, 100.0, 256.0, 1024.0)]
    assert measurements.fitted_exponent(points) == pytest.approx(power, abs=1e-12)


def test_the_exponent_is_the_least_squares_one() -> None:
    # log2 y = 0, 2, 3, 5 at log2 x = 0, 1, 2, 3: slope Σ(x−x̄)(y−ȳ) / Σ(x−x̄)² = 8 / 5
    points = [(1.0, 1.0), (2.0, 4.0), (4.0, 8.0), (8.0, 32.0)]
    assert measurements.fitted_exponent(points) == pytest.approx(1.6)


def test_one_place_has_no_exponent() -> None:
    assert measurements.fitted_exponent([]) is None
    assert measurements.fitted_exponent([(2.0, 1.0), (2.0, 3.0)]) is None


def test_rounds_are_pooled_and_first_starts_kept_apart() -> None:
    found = results(
        record("a", FIRST_START, load_seconds=9.0),
        record("a", 1, load_seconds=1.0),
        record("a", 2, load_seconds=2.0),
        record("b", FIRST_START, load_seconds=5.0),
        record("c", 1, skipped="not installed"),
    )
    pooled = found.spread("a", "load_seconds")
    assert pooled is not None
    assert (pooled.count, pooled.median, pooled.maximum) == (6, 1.5, 2.0)
    first = found.spread("a", "load_seconds", first_start=True)
    assert first is not None
    assert (first.count, first.median) == (3, 9.0)
    assert found.spread("c", "load_seconds") is None
    assert found.cases == ("a",)


# --- what events say ------------------------------------------------------------------------------


def test_events_become_quantities() -> None:
    job = Job(("x",), 2, 2, 4.0, 64, 64, 1, 1, "", "", "", {})
    stages: Mapping[str, float] = {"text_encoder": 0.5, "unet": 3.0, "vae_decoder": 0.25}
    moments = [
        *(("imported", 101.0), ("exported", 104.0), ("loaded", 106.0), ("began", 110.0)),
        *(("evaluated", 114.0), ("evaluated", 115.0), ("drawn", 116.0), ("began", 120.0)),
        *(("evaluated", 121.0), ("evaluated", 122.0), ("drawn", 123.5), ("done", 124.0)),
    ]
    extra = {"drawn": {"stages": stages}, "done": {"peak_bytes": 7}}
    events = [{"event": name, "at": at, **extra.get(name, {})} for name, at in moments]
    assert dict(processes.quantities(events, 100.0, job)) == {
        "import_seconds": (1.0,),
        "export_seconds": (3.0,),
        "load_seconds": (2.0,),
        "first_step_seconds": (13.0,),  # the step that ended at 114 takes 1
        "first_request_seconds": (16.0,),
        "compile_seconds": (2.5,),  # 6 − 3.5
        "request_seconds": (3.5,),
        "text_encoder_seconds": (0.5,),
        "unet_seconds": (3.0,),
        "vae_decoder_seconds": (0.25,),
        "step_seconds": (1.5,),
        "peak_bytes": (7.0,),
    }
    brief = dict(processes.quantities(events, 100.0, replace(job, steps=20)))
    assert "first_request_seconds" not in brief
    assert "compile_seconds" not in brief


# --- the file -------------------------------------------------------------------------------------


def test_results_survive_the_file(tmp_path: Path) -> None:
    written = results(record("a", request_seconds=0.1), record("b", 0, "not installed"))
    measurements.save(written, tmp_path / "results.json")
    assert measurements.load(tmp_path / "results.json") == written
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["schema"] == 1
    assert data["records"][0]["quantities"]["request_seconds"] == {
        "values": [0.1, 0.1, 0.1],
        "count": 3,
        "median": 0.1,
        "minimum": 0.1,
        "maximum": 0.1,
        "lower_quartile": 0.1,
        "upper_quartile": 0.1,
    }


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "conditions": 1}', '{"schema": "1"}']
)
def test_a_foreign_file_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(OutputError, match="holds no results"):
        measurements.kept(file, "peers", CONDITIONS)


@pytest.mark.parametrize(
    ("benchmark", "changed", "says"),
    [
        ("peers", {"runs": 4}, "runs 3, this run has 4"),
        ("peers", {"machine": "two"}, "machine one, this run has two"),
        ("pipeline", {}, "benchmark peers, this run has pipeline"),
    ],
)
def test_records_of_other_conditions_are_refused(
    benchmark: str, changed: dict[str, object], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "results.json"
    measurements.save(results(record("a")), file)
    assert measurements.kept(file, "peers", CONDITIONS).records
    with pytest.raises(InvalidRequest, match=says):
        measurements.kept(file, benchmark, {**CONDITIONS, **changed})


# --- compare --------------------------------------------------------------------------------------


def saved(file: Path, **seconds: float) -> Path:
    records = (record(case, request_seconds=value) for case, value in seconds.items())
    measurements.save(results(*records), file)
    return file


def compared(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdfast", "bench", "compare", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_ratios_are_of_medians_and_their_range_of_quartiles() -> None:
    before = results(replace(record("a"), quantities={"request_seconds": (1.0, 2.0, 3.0)}))
    after = results(replace(record("a"), quantities={"request_seconds": (3.0, 3.0, 5.0)}))
    (change,) = compare.changes(before, after)
    assert change.ratio == pytest.approx(1.5)
    assert change.range == pytest.approx((3.0 / 2.5, 4.0 / 1.5))
    assert compare.slower([change], 1.5) == ()
    assert compare.slower([change], 1.49) == (change,)


def test_only_what_both_measured_is_compared() -> None:
    before = results(record("a", request_seconds=1.0), record("b", request_seconds=1.0))
    after = results(record("b", request_seconds=2.0, peak_bytes=3.0), record("c", peak_bytes=1.0))
    assert [(c.case, c.quantity) for c in compare.changes(before, after, ("all",))] == [
        ("b", "request_seconds")
    ]


def test_the_command_exits_with_1_only_when_slower_than_asked(tmp_path: Path) -> None:
    before = saved(tmp_path / "a.json", quick=1.0, slow=10.0)
    after = saved(tmp_path / "b.json", quick=1.2, slow=9.0)
    done = compared(before, after, "--fail-above", "1.10")
    assert done.returncode == 1
    assert "1 of 2 above 1.1: quick, request_seconds takes 1.20 times as much" in done.stderr
    assert "1.200" in done.stdout
    assert "0.900" in done.stdout
    assert compared(before, after, "--fail-above", "1.25").returncode == 0
    assert compared(before, after).returncode == 0


def test_the_command_says_what_was_measured_otherwise(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "a.json", a=1.0), tmp_path / "b.json"
    other = replace(results(record("a", request_seconds=1.0)), conditions={**CONDITIONS, "runs": 9})
    measurements.save(other, after)
    assert "measured otherwise: runs: 3 → 9" in compared(before, after).stderr


def test_a_mistake_is_one_clear_sentence(tmp_path: Path) -> None:
    one = saved(tmp_path / "a.json", a=1.0)
    other = saved(tmp_path / "b.json", b=1.0)
    for words, says in (
        ((one, other), "no case in common: the first has a, the second b"),
        ((one, one, "--quantities", "request"), "did you mean 'request_seconds'"),
        ((one, tmp_path / "none.json"), "holds no results"),
    ):
        done = compared(*words)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr
