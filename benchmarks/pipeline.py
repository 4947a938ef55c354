"""How long the pipeline takes: by stage, from the start and warm, and how its cost grows with
resolution, images a request and steps.

    sdfast bench pipeline --bundle demo --out FOLDER

Every case is a process of its own. A folder holds `results.json`, written after every process, so
that a run goes on where it was stopped; then `report.md` and the plots.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdfast.bundle import Bundle
from sdfast.errors import InvalidRequest
from sdfast.request import Request

from . import report
from .conditions import conditions, drawn, opened, prompts
from .measurements import FIRST_START, kept
from .processes import (
    FIRST_STEPS,
    PICTURES,
    RESULTS,
    WORK,
    Job,
    Plan,
    Progress,
    Task,
    measure,
    planned,
)
from .series import BASE

SIZE_STEPS = 4  # of a case of resolution: what counts there is the time of one
SIZES = (0.5, 0.75, 1.5, 2.0)  # of the bundle's own
STEPS = (0.25, 0.5, 2.0)  # of those asked for


@dataclass(frozen=True)
class Options:
    """What to measure.

    bundle: name or folder
    load: options of `sdfast.load` (backend, threads…); what is left out has its defaults
    request: parameters of Request that are not measured, as cache or guidance
    steps: of the base case; None for the bundle's default
    batches: images a request
    sizes: sides in pixels; empty for 0.5, 0.75, 1.5 and 2 times the bundle's own where it can
    runs: timed requests a case
    """

    bundle: str = "demo"
    load: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    batches: tuple[int, ...] = (1, 2, 4, 8)
    sizes: tuple[int, ...] = ()
    runs: int = 5


def plan(options: Options, out: Path, command: str) -> Plan:
    """Checks the options and finds what is left to measure.

    command: what the results say they were made by
    Raises a subclass of SdfastError for what is wrong or unknown, for a folder that cannot be
    written, and for one whose results were measured under other conditions.
    """
    if options.runs < 1:
        raise InvalidRequest(f"runs is {options.runs}; it must be 1 or more")
    bundle = opened(options.bundle, options.load)
    tasks = tuple(_tasks(options, bundle, out))
    base = tasks[0].job
    common, date = conditions(
        bundle,
        load=dict(options.load),
        request=dict(options.request),
        steps=base.steps,
        guidance=base.guidance,
        runs=options.runs,
    )
    results = kept(out / RESULTS, "pipeline", common)
    return planned(out, results, tasks, command, date)


def run(plan: Plan, progress: Progress = lambda cost, doing: None) -> tuple[Path, ...]:
    """Measures what is left, and writes the report: the files written. Raises OutputError."""
    results = measure(plan, progress)
    return (plan.out / RESULTS, *report.write(results, plan.out))


def _tasks(options: Options, bundle: Bundle, out: Path) -> Iterator[Task]:
    """The base case from its first start and again, then one that differs from it in each."""

    def task(case: str, round_: int = 1, first: int | None = None, **changed: Any) -> Task:
        given = {**options.request, "steps": options.steps, **changed}
        asked = drawn(bundle, Request.from_dict({"prompt": "x", **given}))
        # A first picture of all steps where its time counts, else of few.
        job = Job(
            prompts=prompts(bundle),
            steps=asked.steps,
            first_steps=asked.steps if first is None else min(first, asked.steps),
            guidance=asked.guidance,
            width=asked.width,
            height=asked.height,
            count=asked.count,
            runs=1 if round_ == FIRST_START else options.runs,
            checkpoint="",
            work=str((out / WORK).resolve()),
            picture=str((out / PICTURES / f"{case.replace(' ', '-')}.png").resolve()),
            options={
                "load": {"bundle": str(bundle.path.resolve()), **options.load},
                "request": _own(options.request),
            },
        )
        settings = {name: getattr(job, name) for name in ("width", "height", "count", "steps")}
        pixels = job.width * job.height * job.count
        cost = pixels * (job.first_steps + job.runs * job.steps)
        python = Path(sys.executable)
        return Task(case, round_, settings, "with_sdfast.py", python, job, cost)

    base = task(BASE)
    yield task(BASE, FIRST_START)
    yield base
    for count in dict.fromkeys(options.batches):
        if count != base.job.count:
            yield task(f"batch {count}", first=FIRST_STEPS, count=count)
    for side in options.sizes or _sizes(bundle):
        if (side, side) != (base.job.width, base.job.height):
            steps = min(SIZE_STEPS, base.job.steps)
            yield task(f"size {side}", first=FIRST_STEPS, width=side, height=side, steps=steps)
    for steps in dict.fromkeys(round(share * base.job.steps) for share in STEPS):
        if steps not in (0, base.job.steps):
            yield task(f"steps {steps}", first=FIRST_STEPS, steps=steps)


def _own(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the job has no place for."""
    return {k: v for k, v in request.items() if k not in ("guidance", "width", "height", "count")}


def _sizes(bundle: Bundle) -> tuple[int, ...]:
    """Sides that the bundle can draw, from half to twice its own."""
    sizes = bundle.sizes
    sides = (round(share * max(sizes.width, sizes.height)) for share in SIZES)
    return tuple(
        side
        for side in sides
        if sizes.minimum <= side <= sizes.maximum and side % sizes.multiple == 0
    )
