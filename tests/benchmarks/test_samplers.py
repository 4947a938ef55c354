"""The sampler benchmark: a small real run on the demo bundle, and what reads its records."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sdfast import backends
from sdfast import samplers as library
from sdfast.benchmarks import sampler_plots, sampler_results, samplers
from sdfast.benchmarks.sampler_results import Combination, Conditions, Record, Results, Throughput
from sdfast.errors import InvalidRequest, OutputError, SdfastError
from sdfast.request import MAX_COUNT

SMALL = samplers.Options(
    samplers=("Euler", "euler_ancestral"),
    schedules=("karras",),
    steps=(1, 8),
    prompts=2,
    repeats=1,
    batches=(1, 2),
    threads=1,  # as quick on a busy machine
)
WORDS = (
    *("--samplers", "Euler,euler_ancestral", "--schedules", "karras"),
    *("--steps", "1,8", "--threads", "1"),
)
FILES = ("results.json", "table.md", "quality.png", "distance.png", "grid.png")


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdfast", "bench", "samplers", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder that the command made for SMALL, and what it said."""
    out = tmp_path_factory.mktemp("ran") / "made"
    return out, bench(*(*WORDS, "--prompts", "2", "--repeats", "1", "--batch", "1,2", "--out", out))


@pytest.fixture(scope="module")
def measured(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """That folder; tests that change it copy it."""
    assert ran[1].returncode == 0, ran[1].stderr
    return ran[0]


def record(sampler: str, steps: int, distance: float | None = 1.0) -> Record:
    combination = Combination(sampler, "karras", steps)
    throughput = (Throughput(1, 1 / (0.01 * steps)), Throughput(4, 130.0 / steps))
    return Record(combination, steps, 0.01 * steps, 0.02 * steps, throughput, 0.875, distance)


def results(*records: Record) -> Results:
    conditions = Conditions(
        *("demo", "0" * 64, 2, 1, (1, 4), "onnxruntime", 0, "a machine", {"python": "3.12"})
    )
    return Results(("2030-01-02 `sdfast bench samplers`",), conditions, records)


# --- a run ----------------------------------------------------------------------------------------


def test_every_combination_has_a_complete_record(measured: Path) -> None:
    found = sampler_results.load(measured / "results.json")
    assert len(found.commands) == 1
    assert "`sdfast bench samplers --samplers Euler,euler_ancestral" in found.commands[0]
    assert found.conditions.bundle == "demo"
    assert found.conditions.backend == backends.choose()
    assert {"python", "sdfast", backends.choose()} == set(found.conditions.versions)
    names = ("euler", "euler_ancestral")  # "Euler" is recorded by its canonical name
    assert [r.combination for r in found.records] == [
        Combination(name, "karras", steps) for name in names for steps in (1, 8)
    ]
    for r in found.records:
        assert r.evaluations == r.combination.steps
        assert 0 < r.median_seconds <= r.p95_seconds
        assert [t.count for t in r.throughput] == [1, 2]
        assert r.throughput[0].images_per_second == pytest.approx(1 / r.median_seconds)
        assert r.throughput[1].images_per_second > 0
        assert r.accuracy is not None
        assert 0 <= r.accuracy <= 1
        stochastic = library.get(r.combination.sampler).stochastic
        assert (r.distance is None) is stochastic


def test_more_steps_come_nearer_to_the_converged_picture_and_to_the_prompt(measured: Path) -> None:
    one, eight = sampler_results.load(measured / "results.json").records[:2]
    assert one.distance is not None
    assert eight.distance is not None
    # One Euler step paints the mean of all pictures (about 35 away); eight leave about 3.
    assert eight.distance < one.distance / 4
    assert one.accuracy is not None
    assert eight.accuracy is not None
    assert eight.accuracy > one.accuracy


def test_a_run_of_the_same_options_measures_nothing_again(measured: Path, tmp_path: Path) -> None:
    out = shutil.copytree(measured, tmp_path / "again")
    (out / "table.md").unlink()
    plan = samplers.plan(SMALL, out, "again")
    assert plan.todo == ()
    assert plan.seconds == 0
    before = (out / "results.json").read_bytes()
    assert [file.name for file in samplers.run(plan)] == list(FILES)
    assert (out / "results.json").read_bytes() == before
    assert (out / "table.md").is_file()


def test_without_its_pictures_a_folder_keeps_its_grid(measured: Path, tmp_path: Path) -> None:
    out = shutil.copytree(measured, tmp_path / "cloned")
    shutil.rmtree(out / "pictures")
    before = (out / "grid.png").read_bytes()
    written = samplers.run(samplers.plan(SMALL, out, "again"))
    assert "grid.png" not in [file.name for file in written]
    assert (out / "grid.png").read_bytes() == before


def test_what_takes_its_own_number_of_steps_is_measured_once(tmp_path: Path) -> None:
    options = replace(SMALL, samplers=("dpm_adaptive", "euler"), steps=(3, 5))
    found = [str(c) for c in samplers.plan(options, tmp_path, "x").todo]
    assert found == ["dpm_adaptive karras 3", "euler karras 3", "euler karras 5"]


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    advanced = []

    def stop(seconds: float, doing: str) -> None:
        if doing == "euler_ancestral karras 1":
            raise KeyboardInterrupt
        advanced.append(seconds)

    options = replace(SMALL, prompts=1)
    plan = samplers.plan(options, tmp_path, "first")
    with pytest.raises(KeyboardInterrupt):
        samplers.run(plan, stop)
    first = sampler_results.load(tmp_path / "results.json").records
    assert [str(r.combination) for r in first] == ["euler karras 1", "euler karras 8"]
    ahead = sum(map(plan.seconds_of, plan.todo[2:]))
    assert sum(advanced) == pytest.approx(plan.seconds - ahead)  # as far as the bar has come
    rest = samplers.plan(options, tmp_path, "second")
    assert [str(c) for c in rest.todo] == ["euler_ancestral karras 1", "euler_ancestral karras 8"]
    assert rest.seconds == sum(map(rest.seconds_of, rest.todo))  # no converged pictures needed
    samplers.run(rest)
    found = sampler_results.load(tmp_path / "results.json")
    assert [command[11:] for command in found.commands] == ["`first`", "`second`"]
    assert found.records[:2] == first
    assert len(found.records) == 4


def test_all_stands_for_every_sampler_and_schedule(tmp_path: Path) -> None:
    from sdfast import schedules

    options = replace(SMALL, samplers=("all",), schedules=("all",), steps=(3,))
    todo = samplers.plan(options, tmp_path, "").todo
    assert {c.sampler for c in todo} == set(library.names())
    assert {c.schedule for c in todo} == set(schedules.names())
    default = replace(SMALL, schedules=(), steps=(3,))
    assert {c.schedule for c in samplers.plan(default, tmp_path, "").todo} == {"karras"}


def test_another_bundle_is_timed_but_not_read(copied: Path, tmp_path: Path) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    (copied / "bundle.json").write_text(json.dumps(manifest | {"name": "other"}))
    options = replace(SMALL, bundle=str(copied), samplers=("euler_ancestral",), steps=(1,))
    samplers.run(samplers.plan(options, tmp_path / "out", ""))
    (found,) = sampler_results.load(tmp_path / "out" / "results.json").records
    assert found.accuracy is None
    assert found.median_seconds > 0


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"prompts": 3}, "prompts 2"), ({"batches": (1,)}, "batches"), ({"threads": 2}, "threads 1")],
)
def test_records_of_other_conditions_are_refused(
    changed: dict[str, object], field: str, measured: Path
) -> None:
    with pytest.raises(InvalidRequest, match=f"{field}.*cannot be compared"):
        samplers.plan(replace(SMALL, **changed), measured, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"samplers": ("oiler",)}, "did you mean 'euler'"),
        ({"schedules": ("karas",)}, "did you mean 'karras'"),
        ({"steps": (0,)}, "steps is 0"),
        ({"steps": ()}, "nothing is to be measured"),
        ({"prompts": 0}, "prompts is 0; it must be 1 or more"),
        ({"repeats": 0}, "repeats is 0; it must be 1 or more"),
        ({"batches": (MAX_COUNT + 1,)}, f"from 1 to {MAX_COUNT}"),
        ({"bundle": "nothing"}, "no bundle 'nothing'"),
        ({"backend": "abacus"}, "backend 'abacus' is unknown"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    changed: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SdfastError, match=says):
        samplers.plan(replace(SMALL, **changed), tmp_path / "out", "")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# --- the command ----------------------------------------------------------------------------------


def test_the_command_says_how_long_it_takes_and_lists_what_it_wrote(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = ran
    assert done.returncode == 0, done.stderr
    assert "4 combinations to measure, 0 there already: about" in done.stderr
    assert done.stdout.splitlines() == [str(out / name) for name in FILES]
    assert all((out / name).is_file() for name in FILES)
    assert len(list((out / "pictures").iterdir())) == 4
    refused = bench(*WORDS, "--prompts", "2", "--repeats", "2", "--batch", "1,2", "--out", out)
    assert refused.returncode == 2
    assert "repeats 1, this run has 2" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "5,ten", "--out", "x"], "--steps is '5,ten'; it must be whole numbers"),
        (["--batch", "two", "--out", "x"], "--batch is 'two'; it must be whole numbers"),
        (["--out", "/proc/x"], "cannot be made"),
        (["--samplers", "oiler", "--out", "new"], "did you mean"),
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


def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from sdfast.cli import main;"
        f"sys.argv = ['sdfast', 'bench', 'samplers', '--out', {str(tmp_path / 'x')!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'needs matplotlib, which is missing: pip install "sdfast[bench]"' in done.stderr
    assert "Traceback" not in done.stderr


# --- records, table, plots ------------------------------------------------------------------------


def test_records_survive_the_file(tmp_path: Path) -> None:
    written = results(record("euler", 5), record("lcm", 5, distance=None))
    sampler_results.save(written, tmp_path / "results.json")
    assert sampler_results.load(tmp_path / "results.json") == written


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"conditions": {}}', '{"conditions": 1}'])
def test_a_foreign_file_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(OutputError, match="holds no results"):
        sampler_results.kept(file, results().conditions)


def test_the_pareto_front_has_what_nothing_beats() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (4.0, 0.9), (5.0, 0.95), (1.0, 0.5)]
    assert sampler_results.pareto_front(points) == (1, 3, 0, 5)
    assert sampler_results.pareto_front([]) == ()


def test_the_table_has_a_row_for_each_record_in_order() -> None:
    text = sampler_results.table(
        results(record("lcm", 5, distance=None), record("euler", 20), record("euler", 5))
    )
    lines = text.splitlines()
    assert lines[0].startswith("2 prompts on bundle demo; a machine; python 3.12; 2030-01-02 `sdf")
    assert lines[2].startswith("| sampler | schedule | steps | evaluations | median ms | p95 ms |")
    assert lines[2].endswith("| images/s × 1 | images/s × 4 | accuracy % | distance |")
    assert lines[4:] == [
        "| euler | karras | 5 | 5 | 50.0 | 100.0 | 20.00 | 26.00 | 87.5 | 1.00 |",
        "| euler | karras | 20 | 20 | 200.0 | 400.0 | 5.00 | 6.50 | 87.5 | 1.00 |",
        "| lcm | karras | 5 | 5 | 50.0 | 100.0 | 20.00 | 26.00 | 87.5 | – |",
    ]


def test_plots_are_pictures_of_a_sane_size() -> None:
    many = [record(f"method_{k}", steps, 10 / (steps + k)) for k in range(33) for steps in (5, 50)]
    tile = Image.new("RGB", (512, 512), "red")
    made = {
        "quality": sampler_plots.quality(many),
        "distance": sampler_plots.distance(many),
        "grid": sampler_plots.grid({r.combination: tile for r in many}),
    }
    for name, data in made.items():
        assert data is not None, name
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG"
            assert 250 <= image.width <= 2000, name
            assert 400 <= image.height <= 4000, name  # 33 rows of the grid are the tallest
            assert len(image.convert("RGB").getcolors(2**24) or []) > 10, name  # not blank


def test_nothing_measured_is_no_plot() -> None:
    bare = replace(record("lcm", 5, distance=None), accuracy=None)
    assert sampler_plots.quality([bare]) is None
    assert sampler_plots.distance([bare]) is None
    assert sampler_plots.grid({}) is None


def test_the_grid_puts_each_picture_in_its_row_and_column() -> None:
    colours = {("a", 5): "red", ("a", 20): "lime", ("b", 5): "blue", ("b", 20): "yellow"}
    pictures = {
        Combination(sampler, "karras", steps): Image.new("RGB", (64, 64), colour)
        for (sampler, steps), colour in colours.items()
    }
    data = sampler_plots.grid(pictures)
    assert data is not None
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = sampler_plots.TILE
    last = (image.width - side // 2, image.height - side // 2)
    places = {("b", 20): last, ("b", 5): (last[0] - side, last[1])}
    places |= {("a", steps): (places["b", steps][0], last[1] - side) for steps in (5, 20)}
    shown = {key: image.getpixel(place) for key, place in places.items()}
    assert shown == {
        key: Image.new("RGB", (1, 1), colours[key]).getpixel((0, 0)) for key in colours
    }
