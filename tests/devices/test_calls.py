"""Runs as calls: made in turn, or by others while a function waits."""

import threading
from collections.abc import Callable, Mapping

import pytest

from sdfast.devices.calls import Call, Running, handed, made
from sdfast.tensors import Tensor


class Counting:
    def __init__(self) -> None:
        self.bound: list[int] = []
        self.runs = 0

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        self.bound.append(id(tensors))

    def run(self) -> None:
        self.runs += 1


def test_a_run_gives_what_it_returns_and_binds_only_other_tensors() -> None:
    network, other = Counting(), Counting()
    one: dict[str, Tensor] = {}
    two: dict[str, Tensor] = {}

    def run() -> Running[str]:
        for tensors in (one, one, two, two, one):
            yield network, tensors
        yield other, one
        return "done"

    assert made(run()) == "done"
    assert network.bound == [id(one), id(two), id(one)]
    assert (network.runs, other.runs) == (5, 1)


def function(count: int, seen: list[str]) -> Callable[[Callable[[Call], None]], None]:
    network = Counting()

    def run(make: Callable[[Call], None]) -> None:
        for k in range(count):
            seen.append(f"asks {k}")
            make((network, {}))
            seen.append(f"has {k}")

    return run


def test_a_function_waits_for_each_of_its_calls() -> None:
    seen: list[str] = []
    for k, _ in enumerate(handed(function(3, seen))):
        seen.append(f"made {k}")
    assert seen == [f"{what} {k}" for k in range(3) for what in ("asks", "made", "has")]


def test_what_a_function_raises_is_raised() -> None:
    def run(make: Callable[[Call], None]) -> None:
        make((Counting(), {}))
        raise ValueError("at the second step")

    calls = handed(run)
    next(calls)
    with pytest.raises(ValueError, match="second step"):
        next(calls)


def test_an_abandoned_function_ends_with_its_thread() -> None:
    seen: list[str] = []
    before = threading.active_count()
    calls = handed(function(3, seen))
    next(calls)
    assert threading.active_count() == before + 1
    calls.close()
    assert threading.active_count() == before
    assert seen == ["asks 0"]
