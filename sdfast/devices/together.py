"""Calls of several runs made as one, because a network does not care whose rows it computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol, runtime_checkable

from .. import cpu
from ..tensors import Tensor, TensorSpec
from .calls import Call


@runtime_checkable
class Whole(Protocol):
    """A network that is one engine, and computes every row for itself."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    def bind(self, tensors: Mapping[str, Tensor], /) -> None: ...
    def run(self) -> None: ...


@runtime_checkable
class ByRow(Whole, Protocol):
    """A network that can run rows by themselves, as many side by side as there are cores.

    What a row becomes then depends on nothing but itself: neither on the others nor on how many
    there are. Cores with rows of their own wait for each other once a call, and not after each
    layer.
    """

    def run_row(self, row: Mapping[str, Tensor], alone: bool) -> None:
        """Runs the network on tensors of one row, by one core; returns when they are written. May
        be called by several threads at once. alone: whether there is only this one, so that other
        cores may help where the row becomes the same by that."""


def alike(calls: Iterable[Call]) -> list[list[Call]]:
    """The calls in groups that can be made as one, in the order of their firsts: all of networks
    that are ByRow, and those of another network that differ in rows alone. What is more than one
    network is called alone."""
    groups: dict[object, list[Call]] = {}
    for k, call in enumerate(calls):
        network, tensors = call
        key: object = k
        if isinstance(network, ByRow):
            key = ByRow
        elif isinstance(network, Whole):
            sides = tuple(tensors[n].shape[1:] for n in (*network.inputs, *network.outputs))
            key = id(network), sides
        groups.setdefault(key, []).append(call)
    return list(groups.values())


class Together:
    """Makes calls that are alike as one. threads: that rows run by, 0 for one on each core.

    Networks that are ByRow run each row where it lies. For others rows are copied into tensors of
    1, 2, 4, 8 … rows, since they are compiled anew, or recorded, for each number of them; rows
    that are too many repeat the last.
    """

    def __init__(self, threads: int = 0) -> None:
        self._pool = ThreadPoolExecutor(threads or cpu.cores())
        self._room: dict[object, dict[str, Tensor]] = {}

    def make(self, calls: Sequence[Call]) -> None:
        """Makes calls that `alike` put together."""
        network, tensors = calls[0]
        if isinstance(network, ByRow):
            self._by_row(calls)
        elif isinstance(network, Whole):
            self._gathered(network, [tensors for _, tensors in calls])
        else:
            network.bind(tensors)
            network.run()

    def _by_row(self, calls: Sequence[Call]) -> None:
        rows = [
            (network, row)
            for network, tensors in calls
            if isinstance(network, ByRow)
            for row in _rows(network, tensors)
        ]
        if len(rows) == 1:
            network, row = rows[0]
            network.run_row(row, alone=True)
            return
        running = [self._pool.submit(network.run_row, row, False) for network, row in rows]
        wait(running)  # all of them, whichever fail: others write to their tensors
        for done in running:
            done.result()

    def _gathered(self, network: Whole, sets: Sequence[Mapping[str, Tensor]]) -> None:
        names = (*network.inputs, *network.outputs)
        counts = [_count(network, tensors) for tensors in sets]
        rows = 1 << (sum(counts) - 1).bit_length()
        shapes = {name: (rows, *sets[0][name].shape[1:]) for name in names}
        key = id(network), tuple(shapes.items())
        if key not in self._room:
            self._room[key] = {
                name: Tensor.empty(shapes[name], sets[0][name].dtype) for name in names
            }
        room = self._room[key]
        for name in network.inputs:
            parts = [memoryview(tensors[name]).cast("B") for tensors in sets]
            side = len(parts[-1]) // counts[-1]
            parts += [parts[-1][-side:]] * (rows - sum(counts))
            _laid(memoryview(room[name]).cast("B"), parts)
        network.bind(room)
        network.run()
        for name in network.outputs:
            begin, made = 0, memoryview(room[name]).cast("B")
            for tensors in sets:
                target = memoryview(tensors[name]).cast("B")
                target[:] = made[begin : begin + len(target)]
                begin += len(target)

    def clear(self) -> None:
        """Frees the tensors that rows are copied to."""
        self._room.clear()


def _count(network: Whole, tensors: Mapping[str, Tensor]) -> int:
    return tensors[next(iter(network.inputs))].shape[0]


def _rows(network: Whole, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    names = (*network.inputs, *network.outputs)
    return [
        {name: tensors[name].rows(k, k + 1) for name in names}
        for k in range(_count(network, tensors))
    ]


def _laid(target: memoryview, parts: Sequence[memoryview]) -> None:
    begin = 0
    for part in parts:
        target[begin : begin + len(part)] = part
        begin += len(part)
