"""Every sampler on every schedule in so many steps: how long a picture takes, whether it shows what
was asked, and how far it is from where the method converges.

    sdfast bench samplers --samplers all --schedules karras --steps 5,10,20,50 --out FOLDER

The pictures that are judged are the ones that are timed. A folder holds `results.json`, written
after every combination, so that a run goes on where it was stopped; then `table.md`, the plots,
and the first prompt's pictures.
"""

from __future__ import annotations

import hashlib
import io
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from sdfast import pipeline, samplers, schedules
from sdfast.bundle import MANIFEST
from sdfast.errors import InvalidRequest, OutputError
from sdfast.export.demo import scenes
from sdfast.pipeline import Pipeline, Result
from sdfast.request import Request, resolve
from sdfast.store import write_atomically

from . import sampler_plots
from .machine import described
from .sampler_results import Combination, Conditions, Record, Results, Throughput, kept, save, table

RESULTS = "results.json"
PICTURES = "pictures"
ALL = "all"

# Where an ODE method of any order ends up: the pictures of a second-order one in 500 steps.
CONVERGED = Combination("dpmpp_2m", "karras", 500)

# What bundles other than the demo are asked for: nothing reads their pictures.
PROMPTS = (
    "a red apple on a wooden table, photograph",
    "a portrait of an old fisherman, oil on canvas",
    "a lighthouse on a cliff in a storm",
    "a small house in a snowy forest at night",
    "a cat asleep on a stack of books",
    "a city street in the rain, neon lights",
    "a bowl of ramen, top view",
    "a hot-air balloon above green hills, watercolour",
)

Progress = Callable[[float, str], None]
"""progress(seconds that this had been estimated to take, what is done next)."""


@dataclass(frozen=True)
class Options:
    """What to measure.

    bundle, backend, device, threads: as `sdfast.load` takes them
    samplers, schedules: names or aliases, or "all"; no schedule means the bundle's default
    prompts: pictures a combination, prompt k with seed k; each is one timed request
    repeats: timed requests at each batch size above 1
    batches: images a request, for the throughput
    """

    bundle: str = "demo"
    samplers: tuple[str, ...] = (ALL,)
    schedules: tuple[str, ...] = ()
    steps: tuple[int, ...] = (5, 10, 20, 50)
    prompts: int = 16
    repeats: int = 3
    batches: tuple[int, ...] = (1, 4)
    backend: str = "auto"
    device: str = "auto"
    threads: int = 0


@dataclass(frozen=True)
class Case:
    """A prompt with its seed, and the scene that it describes where that is known."""

    prompt: str
    seed: int
    scene: scenes.Scene | None


@dataclass(frozen=True)
class Plan:
    """What a run has to do: `todo`, when `results` are there. `pace`: seconds of one evaluation of
    all images at each count of them."""

    pipe: Pipeline
    out: Path
    cases: tuple[Case, ...]
    results: Results
    todo: tuple[Combination, ...]
    pace: Mapping[int, float]

    @property
    def seconds(self) -> float:
        """An estimate of how long `run` takes."""
        seconds = sum(self.seconds_of(combination) for combination in self.todo)
        return seconds + (self.reference_seconds if any(map(_converges, self.todo)) else 0.0)

    @property
    def reference_seconds(self) -> float:
        """An estimate of how long the converged pictures take."""
        return len(self.cases) * CONVERGED.steps * self.pace[1]

    def seconds_of(self, combination: Combination) -> float:
        """An estimate of how long one combination takes."""
        known = samplers.get(combination.sampler).evaluations(combination.steps)
        evaluations = 40 if known is None else known  # what dpm_adaptive mostly takes
        more = sum(self.pace[count] for count in self.pace if count > 1)
        repeats = self.results.conditions.repeats
        return evaluations * (len(self.cases) * self.pace[1] + repeats * more)


def plan(options: Options, out: Path, command: str) -> Plan:
    """Checks the options, opens the bundle, and finds what is left to measure.

    command: what the results say they were made by
    Raises a subclass of SdfastError for what is wrong or unknown, for a folder that cannot be
    written, and for one whose results were measured under other conditions.
    """
    for name in ("prompts", "repeats"):
        if getattr(options, name) < 1:
            raise InvalidRequest(f"{name} is {getattr(options, name)}; it must be 1 or more")
    pipe = pipeline.load(options.bundle, options.backend, options.device, options.threads)
    combinations = _combinations(options, pipe)
    if not combinations:
        raise InvalidRequest("nothing is to be measured: give a sampler and a number of steps")
    batches = tuple(dict.fromkeys(options.batches))
    for count in batches:
        resolve(Request("x", count=count), pipe.bundle)
    header = described(command, pipe.backend)
    conditions = Conditions(
        bundle=pipe.bundle.name,
        bundle_sha256=hashlib.sha256((pipe.bundle.path / MANIFEST).read_bytes()).hexdigest(),
        prompts=options.prompts,
        repeats=options.repeats,
        batches=batches,
        backend=pipe.backend,
        threads=options.threads,
        machine=str(header["machine"]),
        versions=header["versions"],  # type: ignore[arg-type]
    )
    before = kept(out / RESULTS, conditions)
    _make(out / PICTURES)
    done = {record.combination for record in before.records}
    todo = tuple(c for c in combinations if c not in done)
    cases = _cases(pipe.bundle.name, options.prompts)
    counts = tuple(dict.fromkeys((1, *batches)))
    ran = (f"{header['date']} `{command}`",) if todo else ()
    results = replace(before, commands=(*before.commands, *ran))
    return Plan(pipe, out, cases, results, todo, _pace(pipe, counts) if todo else {})


def run(plan: Plan, progress: Progress = lambda seconds, doing: None) -> tuple[Path, ...]:
    """Measures what is left, and writes the table and the plots: the files written.

    Raises OutputError when a file cannot be written.
    """

    @cache
    def converged(case: Case) -> Image.Image:
        picture = _draw(plan.pipe, case, CONVERGED)[0].images[0]
        progress(plan.reference_seconds / len(plan.cases), "converged pictures")
        return picture

    results = plan.results
    for combination in plan.todo:
        progress(0.0, str(combination))
        record, picture = _measure(plan, combination, converged)
        write_atomically(_picture_file(plan.out, combination), _png(picture))
        results = replace(results, records=(*results.records, record))
        save(results, plan.out / RESULTS)
        progress(plan.seconds_of(combination), str(combination))
    return _report(results, plan.out)


def _report(results: Results, out: Path) -> tuple[Path, ...]:
    """Writes the table and the plots of all that the folder holds."""
    files = {r.combination: _picture_file(out, r.combination) for r in results.records}
    pictures = {}
    for combination, file in files.items():
        if file.is_file():
            with Image.open(file) as image:
                pictures[combination] = image.convert("RGB")
    whole = len(pictures) == len(files)  # elsewhere the records may lie without their pictures
    contents: dict[str, bytes | None] = {
        "table.md": table(results).encode(),
        "quality.png": sampler_plots.quality(results.records),
        "distance.png": sampler_plots.distance(results.records),
        "grid.png": sampler_plots.grid(pictures) if whole else None,
    }
    written = {out / name: data for name, data in contents.items() if data is not None}
    for file, data in written.items():
        write_atomically(file, data)
    return (out / RESULTS, *written)


# --- what to measure ------------------------------------------------------------------------------


def _combinations(options: Options, pipe: Pipeline) -> tuple[Combination, ...]:
    """Every sampler × schedule × steps once, by canonical names, each checked for this bundle."""
    wanted = options.schedules or (pipe.bundle.defaults.schedule,)
    every = product(
        samplers.names() if ALL in options.samplers else options.samplers,
        schedules.names() if ALL in wanted else wanted,
        options.steps,
    )
    found = []
    for sampler, schedule, steps in every:
        asked = Request("x", sampler=sampler, schedule=schedule, steps=steps)
        known = resolve(asked, pipe.bundle)
        if samplers.get(known.sampler).evaluations(steps) is None:
            steps = options.steps[0]  # it takes as many as the picture needs, whatever the steps
        found.append(Combination(known.sampler, known.schedule, steps))
    return tuple(dict.fromkeys(found))


def _cases(bundle: str, count: int) -> tuple[Case, ...]:
    """The prompts: for the demo bundle, scenes that its training never saw."""
    if bundle != "demo":
        return tuple(Case(PROMPTS[k % len(PROMPTS)], k, None) for k in range(count))
    rng = random.Random(2024)
    drawn = [scenes.sample(rng, held_out=True) for _ in range(count)]
    return tuple(Case(scenes.caption(scene, rng), k, scene) for k, scene in enumerate(drawn))


def _converges(combination: Combination) -> bool:
    """Whether more steps bring the picture to the one of the probability-flow ODE."""
    return not samplers.get(combination.sampler).stochastic


def _pace(pipe: Pipeline, counts: tuple[int, ...]) -> dict[int, float]:
    """Seconds of one evaluation of all images at each count of them: a median of 3, after one to
    warm up."""
    defaults = pipe.bundle.defaults
    brief = Combination(defaults.sampler, defaults.schedule, 8)
    pace = {}
    for count in counts:
        drawn = [_draw(pipe, Case("x", 0, None), brief, count)[0] for _ in range(4)][1:]
        pace[count] = statistics.median(r.timings["unet"] for r in drawn) / brief.steps
    return pace


# --- measuring ------------------------------------------------------------------------------------


def _measure(
    plan: Plan, combination: Combination, converged: Callable[[Case], Image.Image]
) -> tuple[Record, Image.Image]:
    """One combination's record, and its picture of the first prompt."""
    drawn = [_draw(plan.pipe, case, combination) for case in plan.cases]
    pictures = [result.images[0] for result, _ in drawn]
    seconds = [result.timings["total"] for result, _ in drawn]
    distances = (
        [_rms(a, converged(case)) for a, case in zip(pictures, plan.cases, strict=True)]
        if _converges(combination)
        else []
    )
    record = Record(
        combination=combination,
        evaluations=statistics.median_low(evaluations for _, evaluations in drawn),
        median_seconds=statistics.median(seconds),
        p95_seconds=float(np.percentile(seconds, 95)),
        throughput=tuple(_throughput(plan, combination, seconds)),
        accuracy=_accuracy(plan.cases, pictures),
        distance=statistics.median(distances) if distances else None,
    )
    return record, pictures[0]


def _draw(
    pipe: Pipeline, case: Case, combination: Combination, count: int = 1
) -> tuple[Result, int]:
    """One request with the bundle's defaults otherwise, and its evaluations of the network."""
    evaluations = 0

    def counted(done: int, total: int | None) -> None:
        nonlocal evaluations
        evaluations += 1

    request = Request(case.prompt, seed=case.seed, count=count, **asdict(combination))
    return pipe(request, callback=counted), evaluations


def _throughput(plan: Plan, combination: Combination, single: list[float]) -> Iterator[Throughput]:
    """At each count of images; `single`: the seconds of requests for one."""
    conditions = plan.results.conditions
    cases = [plan.cases[k % len(plan.cases)] for k in range(conditions.repeats)]
    for count in conditions.batches:
        requests = [] if count == 1 else [_draw(plan.pipe, c, combination, count) for c in cases]
        seconds = [result.timings["total"] for result, _ in requests] or single
        yield Throughput(count, count / statistics.median(seconds))


def _accuracy(cases: tuple[Case, ...], pictures: list[Image.Image]) -> float | None:
    """The share of what the scenes name that the pictures show, 0…1."""
    right = [
        agrees
        for case, picture in zip(cases, pictures, strict=True)
        if case.scene is not None
        for agrees in scenes.read(picture).agrees(case.scene).values()
    ]
    return statistics.mean(right) if right else None


def _rms(a: Image.Image, b: Image.Image) -> float:
    """Root mean square of the difference of two pictures of one size, in levels of 1/255."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(np.sqrt(np.mean(difference**2)))


# --- files ----------------------------------------------------------------------------------------


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder {folder} cannot be made ({error.strerror}): choose another --out"
        ) from error


def _picture_file(out: Path, combination: Combination) -> Path:
    return out / PICTURES / f"{str(combination).replace(' ', '-')}.png"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
