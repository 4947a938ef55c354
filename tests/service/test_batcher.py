"""Whose turn it is, and what becomes of a call that fails."""

from collections.abc import Mapping
from typing import Any

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


def test_only_rows_of_the_unet_tell_what_a_row_of_it_takes() -> None:
    """The decoder's, which take longer, are in the same calls."""
    pipeline, seen = sdfast.load("demo", "onnxruntime", throughput=True), list[tuple[int, int]]()
    batcher = Batcher(rows=8)
    for name, steps in (("a", 1), ("b", 3)):
        batcher.join(name, pipeline.drawing(Request("a star", seed=1, steps=steps)), 0, 1.0)
    while (tick := batcher.tick()) is not None:
        seen.append((tick.rows, tick.latents))
    assert seen == [(4, 256), (3, 0), (2, 256), (1, 0)]


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
    first = batcher.tick()
    assert first is not None
    assert first.shrunk
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
