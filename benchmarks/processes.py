"""Measurements in processes of their own: each draws one job (peers/protocol.py) and ends, so that
its start, its memory and its threads are its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import monotonic
from typing import IO, Any

from sdfast.errors import OutputError

from .measurements import FIRST_START, Record, Results, save
from .peers.protocol import Job

SCRIPTS = Path(__file__).parent / "peers"
RESULTS = "results.json"  # in a run's folder, beside
PICTURES = "pictures"
WORK = "work"  # what processes make once and keep
FAILED = "failed"  # begins the reason of a process that did not skip by plan
FIRST_STEPS = 3  # of a picture whose first step alone is of interest

Event = Mapping[str, Any]
Progress = Callable[[float, str], None]
"""progress(how much of the plan's cost is done, what is done now)."""


@dataclass(frozen=True)
class Task:
    """One process to run.

    case, round, settings: as its record has them
    script: the peer's, in peers/; python: what runs it
    cost: about how long it takes, in any unit
    unusable: why it cannot run; it is then skipped
    """

    case: str
    round: int
    settings: Mapping[str, Any]
    script: str
    python: Path
    job: Job
    cost: float
    unusable: str | None = None

    def settles(self, record: Record) -> bool:
        """Whether the record is what this task would measure."""
        same = (record.case, record.round) == (self.case, self.round) and not record.skipped
        return same and all(record.settings.get(k) == v for k, v in self.settings.items())


@dataclass(frozen=True)
class Plan:
    """What a run has to do in a folder: `todo`, when `results` are there."""

    out: Path
    results: Results
    todo: tuple[Task, ...]

    @property
    def cost(self) -> float:
        return sum(task.cost for task in self.todo)


def planned(out: Path, results: Results, tasks: Sequence[Task], command: str, date: str) -> Plan:
    """The tasks that the results do not settle; makes the folder. Raises OutputError."""
    try:
        (out / PICTURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder {out} cannot be made ({error.strerror}): choose another --out"
        ) from error
    todo = tuple(t for t in tasks if not any(t.settles(r) for r in results.records))
    ran = (f"{date} `{command}`",) if any(not t.unusable for t in todo) else ()
    return Plan(out, replace(results, commands=(*results.commands, *ran)), todo)


def measure(plan: Plan, progress: Progress = lambda cost, doing: None) -> Results:
    """Runs what is left and writes the results after every process. Raises OutputError."""
    results, done = plan.results, 0.0
    for task in plan.todo:
        doing = f"{task.case}, {'first start' if task.round == FIRST_START else task.round}"
        progress(done, doing)
        record = run(task, _advancing(progress, done, task, doing))
        others = [r for r in results.records if (r.case, r.round) != (task.case, task.round)]
        results = replace(results, records=(*others, record))
        save(results, plan.out / RESULTS)
        done += task.cost
    progress(done, "done")
    return results


def _advancing(progress: Progress, begun: float, task: Task, doing: str) -> Callable[[int], None]:
    """Tells how far a task is that began at that cost, from its steps."""
    share = task.cost / (task.job.first_steps + task.job.runs * task.job.steps)
    return lambda count: progress(begun + share * count, doing)


# --- one process ----------------------------------------------------------------------------------


def run(task: Task, advance: Callable[[int], None] = lambda count: None) -> Record:
    """Runs one task. One that fails is a record that says how.

    advance: told how many steps are done
    """
    bare = Record(task.case, task.round, task.settings, {}, task.unusable, {})
    if task.unusable:
        return bare
    work = Path(task.job.work)
    if task.round == FIRST_START:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "SDFAST_HOME": str(work / "store"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "torchinductor"),
    }
    command = [str(task.python), str(SCRIPTS / task.script), json.dumps(asdict(task.job))]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        spawned = monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process:
            try:
                assert process.stdout is not None
                events = list(_events(process.stdout, advance))
            except BaseException:  # Ctrl-C above all: nothing goes on behind the user's back
                process.kill()
                raise
        if process.returncode or not events or events[-1]["event"] != "done":
            return replace(bare, skipped=f"{FAILED}: {_last_line(errors, process.returncode)}")
    chosen = {k: v for event in events for k, v in event.get("settings", {}).items()}
    versions = {k: v for event in events for k, v in event.get("versions", {}).items()}
    found = {name: values for name, values in quantities(events, spawned, task.job) if values}
    return replace(bare, settings={**task.settings, **chosen}, versions=versions, quantities=found)


def _events(lines: IO[str], advance: Callable[[int], None]) -> Iterator[Event]:
    count = 0
    for line in lines:
        event = json.loads(line)
        if event["event"] == "evaluated":
            count += 1
            advance(count)
        yield event


def _last_line(errors: IO[str], code: int) -> str:
    if code == -signal.SIGKILL:  # Python would have said what else it was
        return "the system killed it, mostly for want of memory"
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"the process ended with {code}"


@dataclass(frozen=True)
class _Picture:
    """Moments of one request: seconds on the clock of the events."""

    began: float
    evaluated: tuple[float, ...]
    drawn: float
    stages: Mapping[str, float]


def quantities(
    events: Sequence[Event], spawned: float, job: Job
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """What the events of a process say, by name.

    spawned: when the process was started, on the events' clock
    """
    at = {event["event"]: float(event["at"]) for event in reversed(events)}  # the first of each
    yield "import_seconds", (at["imported"] - spawned,)
    if "exported" in at:
        yield "export_seconds", (at["exported"] - at["imported"],)
    yield "load_seconds", (at["loaded"] - at.get("exported", at["imported"]),)
    first, *others = _pictures(events)
    if first.evaluated:
        later = [b - a for picture in (first, *others) for a, b in pairwise(picture.evaluated)]
        began = first.evaluated[0] - (median(later) if later else 0.0)
        yield "first_step_seconds", (began - spawned,)
    if job.first_steps == job.steps:
        yield "first_request_seconds", (first.drawn - spawned,)
        if others:
            warm = median(picture.drawn - picture.began for picture in others)
            yield "compile_seconds", (first.drawn - first.began - warm,)
    yield "request_seconds", tuple(picture.drawn - picture.began for picture in others)
    for stage in first.stages:
        yield f"{stage}_seconds", tuple(picture.stages[stage] for picture in others)
    yield "step_seconds", tuple(p.stages["unet"] / job.steps for p in others if "unet" in p.stages)
    yield "peak_bytes", tuple(float(e["peak_bytes"]) for e in events if e["event"] == "done")


def _pictures(events: Sequence[Event]) -> Iterator[_Picture]:
    began, evaluated = 0.0, []
    for event in events:
        match event["event"]:
            case "began":
                began, evaluated = float(event["at"]), []
            case "evaluated":
                evaluated.append(float(event["at"]))
            case "drawn":
                yield _Picture(began, tuple(evaluated), float(event["at"]), event["stages"])
