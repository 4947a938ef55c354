"""What `sdfast bench pipeline` and `sdfast bench peers` found: the values of every quantity, the
file that keeps them (docs/benchmarks.md has its schema), and what is read from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import linear_regression
from typing import Any

import numpy as np

from sdfast.errors import InvalidRequest, OutputError
from sdfast.store import write_atomically

SCHEMA = 1
FIRST_START = 0  # the round of a process that finds nothing made or compiled before it


@dataclass(frozen=True)
class Spread:
    """A median with what lies around it; the quartiles are interpolated linearly."""

    count: int
    median: float
    minimum: float
    maximum: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True)
class Record:
    """One process.

    case: what was measured, as "size 256" or a peer's name
    round: FIRST_START, or from 1 on
    settings: what distinguishes the case, and what its process chose itself
    versions: of what it ran on
    skipped: why nothing was measured; None where it was
    quantities: values by a name that ends in its unit (docs/benchmarks.md lists them)
    """

    case: str
    round: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    skipped: str | None
    quantities: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Results:
    """The records of a folder, what they have in common, and the commands that measured them, each
    under its date (ISO).

    benchmark: "pipeline" or "peers"
    """

    benchmark: str
    commands: tuple[str, ...]
    conditions: Mapping[str, Any]
    records: tuple[Record, ...]

    @property
    def cases(self) -> tuple[str, ...]:
        """Those with measured rounds after the first start, in order."""
        measured = (r.case for r in self.records if r.round != FIRST_START and not r.skipped)
        return tuple(dict.fromkeys(measured))

    def settings(self, case: str) -> Mapping[str, Any]:
        """Those of a case, from its last record."""
        return next(r.settings for r in reversed(self.records) if r.case == case and not r.skipped)

    def spread(self, case: str, quantity: str, *, first_start: bool = False) -> Spread | None:
        """Of all values of a quantity in the rounds of a case, or in its first start; None where
        there are none."""
        values = [
            value
            for record in self.records
            if record.case == case and (record.round == FIRST_START) is first_start
            for value in record.quantities.get(quantity, ())
        ]
        return spread(values) if values else None


# --- reading values -------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> Spread:
    """Of one value at least."""
    low, middle, high = (float(v) for v in np.percentile(values, (25, 50, 75)))
    return Spread(len(values), middle, min(values), max(values), low, high)


def fitted_exponent(points: Iterable[tuple[float, float]]) -> float | None:
    """p of y = c·xᵖ by least squares of log y over log x; None for fewer than two different x. All
    numbers must be above 0."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    if len({x for x, _ in logs}) < 2:
        return None
    return linear_regression(*zip(*logs, strict=True)).slope


# --- the file -------------------------------------------------------------------------------------


def save(results: Results, file: Path) -> None:
    """Writes the results as JSON, whole or not at all. Raises OutputError."""
    data = {
        "schema": SCHEMA,
        **asdict(results),
        "records": [_written(record) for record in results.records],
    }
    write_atomically(file, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())


def _written(record: Record) -> dict[str, Any]:
    """A record, its quantities with their spread for those who read the file."""
    return {
        **asdict(record),
        "quantities": {
            name: {"values": values, **asdict(spread(values))}
            for name, values in record.quantities.items()
        },
    }


def load(file: Path) -> Results:
    """The results in a file that `save` wrote. Raises OutputError for any other."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']}, this version reads {SCHEMA}")
        return Results(
            benchmark=data["benchmark"],
            commands=tuple(data["commands"]),
            conditions={str(k): v for k, v in data["conditions"].items()},
            records=tuple(_read(record) for record in data["records"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{file} holds no results of sdfast bench pipeline or peers ({error!r}): name the "
            "results.json of one, or choose another --out"
        ) from error


def _read(data: dict[str, Any]) -> Record:
    quantities = {
        name: tuple(float(value) for value in quantity["values"])
        for name, quantity in data["quantities"].items()
    }
    known = {field.name: data[field.name] for field in fields(Record)}
    return Record(**{**known, "quantities": quantities})


def kept(file: Path, benchmark: str, conditions: Mapping[str, Any]) -> Results:
    """The results that a run under these conditions can go on from; empty where there is no file.

    Raises InvalidRequest when they are of another benchmark or were measured otherwise.
    """
    if not file.exists():
        return Results(benchmark, (), conditions, ())
    results = load(file)
    before = {"benchmark": results.benchmark, **results.conditions}
    for name, now in {"benchmark": benchmark, **conditions}.items():
        was = before.get(name)
        if was != now:
            raise InvalidRequest(
                f"{file} was measured with {name} {was}, this run has {now}, and the two cannot be "
                "compared: choose another --out, or repeat what was there"
            )
    return results
