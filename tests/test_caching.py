"""Which evaluations a cache makes shallow, and what a cached program is in text and JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sdfast import program
from sdfast.caching import Cache, cached, checked
from sdfast.errors import InvalidProgram, InvalidRequest
from sdfast.program import Eval, Program

SIGMAS = (14.6, 9.0, 6.0, 3.0, 1.5, 0.7, 0.2, 0.0)


def whole(marked: Program) -> list[int]:
    """The evaluations that run the whole network."""
    evaluations = [i for i in marked.instructions if isinstance(i, Eval)]
    return [k for k, evaluation in enumerate(evaluations) if not evaluation.shallow]


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6]),
        (2, [0, 2, 4, 6]),
        (3, [0, 3, 6]),
        (7, [0]),
        (1000, [0]),
        ((0,), [0]),
        ((0, 1, 3, 6), [0, 1, 3, 6]),
    ],
)
def test_the_first_and_every_nth_evaluation_or_those_named_run_the_whole(
    cache: Cache, expected: list[int]
) -> None:
    assert whole(cached(program.trace("dpmpp_2m", SIGMAS), cache)) == expected


def test_what_is_counted_are_evaluations_and_not_steps() -> None:
    marked = cached(program.trace("heun", SIGMAS), 2)
    assert marked.evaluations == 13  # two a step, and one in the last
    assert whole(marked) == list(range(0, 13, 2))


def test_a_cache_changes_nothing_but_the_marks() -> None:
    traced = program.trace("euler_ancestral", SIGMAS)
    assert cached(traced, 1) == traced
    assert cached(traced, tuple(range(7))) == traced
    assert cached(cached(traced, 3), 1) == traced  # it marks anew


@pytest.mark.parametrize(
    "value",
    [0, -1, 1001, True, 2.0, "3", None, (), (1, 2), (0, 2, 2), (0, 3, 2), (0, 1.0), (False, 1), {}],
)
def test_what_is_no_cache_is_refused(value: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=r"cache is .* must be auto, an interval from 1 to 1000, or"
    ):
        checked(value)
    with pytest.raises(InvalidRequest, match="cache is"):
        cached(program.trace("euler", SIGMAS), value)


def test_a_list_is_a_schedule() -> None:
    assert checked([0, 2]) == (0, 2)


def test_an_evaluation_beyond_the_last_is_refused() -> None:
    traced = program.trace("euler", SIGMAS)
    assert whole(cached(traced, (0, 6))) == [0, 6]
    with pytest.raises(InvalidRequest, match="names evaluation 7; the run has 7, counted from 0"):
        cached(traced, (0, 7))


def test_a_cached_program_survives_json_and_prints_its_marks() -> None:
    marked = cached(program.trace("dpmpp_2m", (14.0, 3.0, 1.0, 0.0)), 2)
    assert Program.from_json(marked.to_json()) == marked
    evaluations = [line for line in str(marked).splitlines() if "D(" in line]
    assert evaluations == ["x1 = D(x0, σ 14)", "x2 = D(x0, σ 3, cached)", "x2 = D(x1, σ 1)"]


def test_a_program_that_begins_shallow_is_refused() -> None:
    record = json.loads(program.trace("euler", SIGMAS).to_json())
    first = next(row for row in record["instructions"] if row[0] == "eval")
    first[-1] = True
    with pytest.raises(InvalidProgram, match="first evaluation is shallow"):
        Program.from_json(json.dumps(record))
    first[-1] = 0
    with pytest.raises(InvalidProgram, match="0 is neither true nor false"):
        Program.from_json(json.dumps(record))
