"""Whose turn it is, and what becomes of a call that fails."""

from collections.abc import Mapping
from threading import Event, Lock
from time import sleep
from typing import Any

import pytest
from PIL import Image

import sdfast
from sdfast.devices.calls import Running
from sdfast.errors import EngineError
from sdfast.pipeline import Result
from sdfast.request import Request
from sdfast.service.batcher import Batcher
from sdfast.tensors import Tensor, TensorSpec

RESULT = Result((Image.new("RGB", (8, 8)),), (1,), {}, Request("a star"), "loop")


class Network:
    """Adds 1 to every row, by a call of at most so many."""

    inputs: Mapping[str, TensorSpec] = {"x": TensorSpec("f32", (None, 1))}
    outputs: Mapping[str, TensorSpec] = {"y": TensorSpec("f32", (None, 1))}

    def __init__(self, most: int = 99) -> None:
        self.most, self.calls = most, list[int]()
        self._bound: Mapping[str, Tensor] = {}

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        self._bound = tensors

    def run(self) -> None:
        x, y = (memoryview(self._bound[name]).cast("B").cast("f") for name in ("x", "y"))
        self.calls.append(len(x))
        if len(x) > self.most:
            raise EngineError("out of memory")
        for k, value in enumerate(x):
            y[k] = value + 1


def steps(network: Network, count: int, rows: int = 1) -> Running[Result]:
    tensors = {name: Tensor.zeros((rows, 1), "f32") for name in ("x", "y")}
    x, y = (memoryview(tensors[name]).cast("B").cast("f") for name in ("x", "y"))
    for k in range(count):
        yield network, tensors
        assert list(y) == [k + 1.0] * rows
        x[:] = y
    return RESULT


def order(batcher: Batcher) -> list[str]:
    """The names of the runs in the order in which they ended."""
    ended = list[str]()
    while (tick := batcher.tick()) is not None:
        for name, end in tick.ends:
            assert isinstance(end, Result), end
            ended.append(name)
    return ended


def test_runs_whose_calls_are_alike_are_called_as_one() -> None:
    network, batcher = Network(), Batcher(rows=8)
    for name, count in (("a", 2), ("b", 4), ("c", 3)):
        assert batcher.join(name, steps(network, count), 0, 1.0) is None
    assert order(batcher) == ["a", "c", "b"]
    assert network.calls == [4, 4, 2, 1]  # of 3 rows, 3, 2, 1: those that are compiled for


def test_a_run_joins_at_the_next_call() -> None:
    network, batcher = Network(), Batcher(rows=8)
    batcher.join("a", steps(network, 3), 0, 1.0)
    assert (tick := batcher.tick()) is not None
    assert tick.runs == ("a",)
    batcher.join("b", steps(network, 1), 0, 1.0)
    assert (tick := batcher.tick()) is not None
    assert (set(tick.runs), tick.rows) == ({"a", "b"}, 2)
    assert [name for name, _ in tick.ends] == ["b"]


def test_only_calls_of_the_unet_tell_what_a_row_of_it_takes() -> None:
    pipeline, seen = sdfast.load("demo", "onnxruntime", throughput=True), list[tuple[int, int]]()
    batcher = Batcher(rows=8, cores=1)
    for name, steps in (("a", 1), ("b", 3)):
        batcher.join(name, pipeline.drawing(Request("a star", seed=1, steps=steps)), 0, 1.0)
    while (tick := batcher.tick()) is not None:
        seen.append((tick.rows, tick.latents))
    assert sum(rows for rows, latents in seen if latents == 256) == 2 * (1 + 3)
    assert sum(rows for rows, latents in seen if latents == 0) == 2  # decoded


class Rows(Network):
    """A network whose rows cores can compute for themselves, each of which takes a while."""

    def __init__(self, most: int = 99, seconds: float = 0.0) -> None:
        super().__init__(most)
        self.seconds, self.held, self.together = seconds, Event(), 0
        self.held.set()
        self._inside, self._lock = 0, Lock()

    def run_rows(self, rows: Mapping[str, Tensor], alone: bool) -> None:
        with self._lock:
            self._inside += 1
            self.together = max(self.together, self._inside)
            self.calls.append(rows["x"].shape[0])
        self.held.wait()
        sleep(self.seconds * rows["x"].shape[0])
        with self._lock:
            self._inside -= 1
        if rows["x"].shape[0] > self.most:
            raise EngineError("out of memory")
        x, y = (memoryview(rows[name]).cast("B").cast("f") for name in ("x", "y"))
        for k, value in enumerate(x):
            y[k] = value + 1


def test_each_core_has_rows_of_its_own() -> None:
    network, batcher = Rows(seconds=0.005), Batcher(rows=32, cores=2)
    batcher.join("a", steps(network, 5, rows=2), 0, 1.0)
    assert order(batcher) == ["a"]
    assert network.calls == [1] * 10
    assert network.together == 2


def test_a_core_that_is_done_waits_for_no_other() -> None:
    slow, quick, batcher = Rows(), Rows(), Batcher(rows=32, cores=2)
    slow.held.clear()
    batcher.join("slow", steps(slow, 1), 0, 1.0)
    batcher.join("quick", steps(quick, 5), 0, 1.0)
    ended: list[str] = []
    while not ended:
        tick = batcher.tick()
        assert tick is not None
        ended += [name for name, _ in tick.ends]
    assert ended == ["quick"]
    assert batcher.busy
    assert batcher.oldest > 0
    slow.held.set()
    assert order(batcher) == ["slow"]
    assert batcher.oldest == 0


def test_calls_have_so_many_rows_that_they_take_long_enough_and_no_more() -> None:
    many: list[int] = []
    for seconds in (0.0, 0.004, 0.03):
        network, batcher = Rows(seconds=seconds), Batcher(rows=64, cores=2)
        for k in range(24):
            batcher.join(str(k), steps(network, 4), 0, 1.0)
        assert len(order(batcher)) == 24
        many.append(max(network.calls))
        assert sum(network.calls) == 24 * 4
    assert many[0] == 24 // 3  # the next call of one of two cores waits
    assert many[1] in (3, 4, 5)
    assert many[2] == 1


def test_a_run_that_is_dropped_while_it_is_computed_is_closed_after_that() -> None:
    network, batcher = Rows(), Batcher(rows=8, cores=2)
    network.held.clear()
    running = steps(network, 5, rows=2)
    batcher.join("a", running, 0, 1.0)
    batcher.begin()
    batcher.drop("a")
    assert running.gi_frame is not None  # its tensors are written to
    network.held.set()
    assert order(batcher) == []
    assert running.gi_frame is None
    assert not batcher.busy


def test_what_fails_beside_others_is_made_once_more_with_nothing_beside_it() -> None:
    network, batcher = Rows(most=1), Batcher(rows=32, cores=1)
    for name in "abcdef":
        batcher.join(name, steps(network, 3, rows=2), 0, 1.0)
    ticks = list(iter(batcher.tick, None))
    assert [end for tick in ticks for _, end in tick.ends] == [RESULT] * 6
    assert any(tick.shrunk for tick in ticks)
    assert batcher.rows <= 2


def test_turns_are_fair_where_not_all_fit() -> None:
    network, batcher = Network(), Batcher(rows=2)
    for name in "abc":
        batcher.join(name, steps(network, 4), 0, 1.0)
    served = [set(tick.runs) for _ in range(6) if (tick := batcher.tick()) is not None]
    assert [sum(name in turn for turn in served) for name in "abc"] == [4, 4, 4]


def test_the_shortest_comes_first_where_it_is_asked_for() -> None:
    batcher = Batcher(rows=1, order="shortest")
    for name, count in (("long", 20), ("short", 3), ("middle", 6)):
        batcher.join(name, steps(Network(), count), 0, float(count))
    assert order(batcher) == ["short", "middle", "long"]


def test_a_higher_priority_comes_first_but_nobody_waits_for_ever() -> None:
    batcher, ends = Batcher(rows=1), list[str]()
    batcher.join("low", steps(Network(), 2), 0, 1.0)
    batcher.join("high", steps(Network(), 200), 1, 1.0)
    ends = order(batcher)
    assert ends == ["low", "high"]  # each of its 2 steps waited for 32 of the other's
    batcher.join("low", steps(Network(), 2), 0, 1.0)
    batcher.join("high", steps(Network(), 20), 1, 1.0)
    assert order(batcher) == ["high", "low"]


def test_calls_that_need_too_much_memory_are_made_one_by_one_and_smaller_from_then_on() -> None:
    network, batcher = Network(most=2), Batcher(rows=8)
    for name in "abcd":
        batcher.join(name, steps(network, 3), 0, 1.0)
    ticks = [tick for _ in range(2) if (tick := batcher.tick()) is not None]
    assert [tick.shrunk for tick in ticks] == [False, True]  # one alone did not fail
    assert batcher.rows == 2
    assert sorted(order(batcher)) == list("abcd")
    assert network.calls[:5] == [4, 1, 1, 1, 1]
    assert set(network.calls[5:]) == {2}


def test_who_fails_alone_has_failed_and_takes_no_other_with_it() -> None:
    network, batcher = Network(most=2), Batcher(rows=16)
    batcher.join("large", steps(network, 2, rows=4), 0, 1.0)
    batcher.join("small", steps(network, 2), 0, 1.0)
    ends: dict[str, Any] = {}
    while (tick := batcher.tick()) is not None:
        ends |= dict(tick.ends)
    assert isinstance(ends["large"], EngineError)
    assert ends["small"] is RESULT
    assert network.calls[-1] == 1


@pytest.mark.parametrize("cores", [1, 2])
def test_one_that_always_fails_makes_nothing_smaller_for_others(cores: int) -> None:
    network, batcher = Rows(most=0), Batcher(rows=32, cores=cores)
    batcher.join("wrong", steps(network, 2, rows=2), 0, 1.0)
    ticks = list(iter(batcher.tick, None))
    assert isinstance(ticks[-1].ends[0][1], EngineError)
    assert not any(tick.shrunk for tick in ticks)
    assert batcher.rows == 32


def test_no_more_rows_are_computed_at_once_than_are_allowed() -> None:
    network, batcher = Rows(seconds=0.002), Batcher(rows=2, cores=4)
    for name in "abc":
        batcher.join(name, steps(network, 3, rows=2), 0, 1.0)
    ticks = list(iter(batcher.tick, None))
    assert max(tick.at_once for tick in ticks) == 2
    assert network.together <= 2
    assert sum(network.calls) == 18


def test_what_a_row_takes_is_told_of_the_part_of_the_machine_that_had_it() -> None:
    network, batcher = Rows(seconds=0.01), Batcher(rows=32, cores=8)
    batcher.join("a", steps(network, 3, rows=5), 0, 1.0)
    ticks = list(iter(batcher.tick, None))
    assert {tick.share for tick in ticks} == {1 / 5}  # of the cores no more have rows


def test_few_rows_have_all_cores() -> None:
    network, batcher = Rows(), Batcher(rows=32, cores=8)
    for name in "ab":
        batcher.join(name, steps(network, 3, rows=2), 0, 1.0)
    ticks = list(iter(batcher.tick, None))
    assert [(tick.rows, tick.share) for tick in ticks] == [(4, 1.0)] * 3


def test_a_part_that_fails_while_another_is_out_is_made_once_more_when_that_is_done() -> None:
    class Once(Rows):
        """Fails at its first call."""

        def run_rows(self, rows: Mapping[str, Tensor], alone: bool) -> None:
            first = not self.calls
            super().run_rows(rows, alone)
            if first:
                raise EngineError("once")

    network, batcher = Once(seconds=0.01), Batcher(rows=32, cores=2)
    batcher.join("a", steps(network, 2, rows=2), 0, 1.0)
    ticks = list(iter(batcher.tick, None))
    assert [end for tick in ticks for _, end in tick.ends] == [RESULT]
    assert network.calls == [1, 1, 1, 1, 1, 1]  # both again, one after the other
    assert batcher.rows == 1


def test_a_run_that_is_dropped_is_closed() -> None:
    network, batcher = Network(), Batcher(rows=8)
    running = steps(network, 5)
    batcher.join("a", running, 0, 1.0)
    batcher.tick()
    batcher.drop("a")
    batcher.drop("a")
    assert running.gi_frame is None
    assert batcher.tick() is None


def test_a_mistake_that_shows_late_ends_its_run_alone() -> None:
    def wrong(network: Network) -> Running[Result]:
        yield network, {name: Tensor.zeros((1, 1), "f32") for name in ("x", "y")}
        raise ValueError("at the second step")

    network, batcher = Network(), Batcher(rows=8)
    batcher.join("good", steps(network, 3), 0, 1.0)
    batcher.join("wrong", wrong(network), 0, 1.0)
    tick = batcher.tick()
    assert tick is not None
    assert [(name, str(end)) for name, end in tick.ends] == [("wrong", "at the second step")]
    assert order(batcher) == ["good"]
