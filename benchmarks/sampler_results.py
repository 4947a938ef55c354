"""What the sampler benchmark found: one record a combination, the file that keeps them, and the
table and the Pareto front drawn from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sdfast.errors import InvalidRequest, OutputError
from sdfast.store import write_atomically


@dataclass(frozen=True)
class Combination:
    """A sampler (canonical name) on a schedule in so many steps."""

    sampler: str
    schedule: str
    steps: int

    def __str__(self) -> str:
        return f"{self.sampler} {self.schedule} {self.steps}"


@dataclass(frozen=True)
class Throughput:
    """Images a second when a request asks for `count` images."""

    count: int
    images_per_second: float


@dataclass(frozen=True)
class Record:
    """One combination, over all prompts.

    evaluations: of the network for one picture; the median where a sampler chooses its steps
    median_seconds, p95_seconds: of one request for one picture; the first request of a combination
        also traces its program
    throughput: from the median seconds at each count
    accuracy: share, 0…1, of what the prompts ask (shape, colour, size, place, background, pattern)
        that the pictures show; None where pictures cannot be read
    distance: RMS pixel difference to the converged picture, in levels of 1/255, the median over
        the prompts; None for a sampler that draws noise
    """

    combination: Combination
    evaluations: int
    median_seconds: float
    p95_seconds: float
    throughput: tuple[Throughput, ...]
    accuracy: float | None
    distance: float | None


@dataclass(frozen=True)
class Conditions:
    """What has to be the same for records to be comparable."""

    bundle: str
    bundle_sha256: str
    prompts: int
    repeats: int
    batches: tuple[int, ...]
    backend: str
    threads: int
    machine: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Results:
    """The records of a folder, and the commands of the runs that measured them, each under its date
    (ISO)."""

    commands: tuple[str, ...]
    conditions: Conditions
    records: tuple[Record, ...]


# --- the file -------------------------------------------------------------------------------------


def save(results: Results, file: Path) -> None:
    """Writes the results as JSON, whole or not at all. Raises OutputError."""
    write_atomically(file, (json.dumps(asdict(results), indent=1) + "\n").encode())


def load(file: Path) -> Results:
    """The results in a file that `save` wrote. Raises OutputError for any other."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        conditions = data["conditions"]
        return Results(
            commands=tuple(data["commands"]),
            conditions=Conditions(**{**conditions, "batches": tuple(conditions["batches"])}),
            records=tuple(_record(record) for record in data["records"]),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{file} holds no results of the sampler benchmark ({error}): remove it, or choose "
            "another --out"
        ) from error


def _record(data: dict[str, Any]) -> Record:
    combination = Combination(**data["combination"])
    throughput = tuple(Throughput(**entry) for entry in data["throughput"])
    return Record(**{**data, "combination": combination, "throughput": throughput})


def kept(file: Path, conditions: Conditions) -> Results:
    """The results that a run under these conditions can go on from; empty where there is no file.

    Raises InvalidRequest when they were measured under other conditions.
    """
    if not file.exists():
        return Results((), conditions, ())
    results = load(file)
    for field in fields(Conditions):
        before, now = getattr(results.conditions, field.name), getattr(conditions, field.name)
        if before != now:
            raise InvalidRequest(
                f"{file} was measured with {field.name} {before}, this run has {now}, and the two "
                "cannot be compared: choose another --out, or repeat what was there"
            )
    return results


# --- reading them ---------------------------------------------------------------------------------


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """The points (seconds, quality) than which none is both as quick and as good: their places in
    `points`, the quickest first. Of equal points the first is taken."""
    front: list[int] = []
    for k in sorted(range(len(points)), key=lambda k: (points[k][0], -points[k][1])):
        if not front or points[k][1] > points[front[-1]][1]:
            front.append(k)
    return tuple(front)


def table(results: Results) -> str:
    """The records as a Markdown table under a line that says where they come from."""
    conditions = results.conditions
    versions = ", ".join(f"{name} {version}" for name, version in conditions.versions.items())
    heads = ["sampler", "schedule", "steps", "evaluations", "median ms", "p95 ms"]
    heads += [f"images/s × {count}" for count in conditions.batches]
    heads += ["accuracy %", "distance"]
    ordered = sorted(results.records, key=lambda record: tuple(asdict(record.combination).values()))
    return "\n".join(
        [
            f"{conditions.prompts} prompts on bundle {conditions.bundle}; {conditions.machine}; "
            f"{versions}; {'; '.join(results.commands)}. Accuracy: of what the prompts ask, the "
            "share that is shown. Distance: to the converged picture, RMS in levels of 1/255.",
            "",
            _row(heads),
            _row(["---"] * 2 + ["---:"] * (len(heads) - 2)),
            *(_row(_cells(record)) for record in ordered),
            "",
        ]
    )


def _cells(record: Record) -> list[str]:
    combination = record.combination
    return [
        combination.sampler,
        combination.schedule,
        str(combination.steps),
        str(record.evaluations),
        f"{1000 * record.median_seconds:.1f}",
        f"{1000 * record.p95_seconds:.1f}",
        *(f"{entry.images_per_second:.2f}" for entry in record.throughput),
        "–" if record.accuracy is None else f"{100 * record.accuracy:.1f}",
        "–" if record.distance is None else f"{record.distance:.2f}",
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
