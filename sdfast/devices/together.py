"""Calls of several runs made as one, because a network does not care whose rows it computes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, TypeGuard

from ..tensors import Tensor, TensorSpec
from .calls import Call, Network, Running, T, made

_ROOMS = 16  # shapes whose tensors are kept


class Whole(Protocol):
    """A network that is one engine, and computes every row for itself."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    def bind(self, tensors: Mapping[str, Tensor], /) -> None: ...
    def run(self) -> None: ...


class ByRow(Whole, Protocol):
    """A network of which a core can compute some rows while others compute other ones.

    What a row becomes then depends on nothing but itself: neither on the others nor on how many
    there are. Cores with rows of their own need not wait for each other after each layer.
    """

    def run_rows(self, rows: Mapping[str, Tensor], alone: bool) -> None:
        """Runs the network on tensors of some rows, by one core; returns when they are written. May
        be called by several threads at once. alone: whether nothing else runs, so that other cores
        may help where the rows become the same by that."""


def is_whole(network: Network) -> TypeGuard[Whole]:
    """Whether it is one engine. What is more than one says nothing of what it reads."""
    return hasattr(network, "inputs")


def is_by_row(network: Network) -> TypeGuard[ByRow]:
    return hasattr(network, "run_rows")


def kind(call: Call) -> Hashable | None:
    """The same for calls that can be made as one: those of one network that differ in rows alone.
    None for a call of what is more than one network, which is made by itself."""
    network, tensors = call
    if not is_whole(network):
        return None
    return id(network), tuple(tensors[n].shape[1:] for n in (*network.inputs, *network.outputs))


def count(call: Call) -> int:
    """The rows of a call."""
    network, tensors = call
    name = next(iter(network.inputs if is_whole(network) else tensors))
    return tensors[name].shape[0]


def part(call: Call, start: int, stop: int) -> Call:
    """Those rows of a call of one network."""
    network, tensors = call
    if (start, stop) == (0, count(call)) or not is_whole(network):
        return call
    names = (*network.inputs, *network.outputs)
    return network, {name: tensors[name].rows(start, stop) for name in names}


class Together:
    """Makes calls of one kind as one, for one thread at a time.

    Where there are several, their rows are copied side by side. Networks that are not ByRow are
    compiled anew, or recorded, for each number of rows: they are run on 1, 2, 4, 8 … of them, and
    rows that are too many repeat the last.
    """

    def __init__(self) -> None:
        self._rooms: dict[object, dict[str, Tensor]] = {}

    def make(self, calls: Sequence[Call], alone: bool = True) -> None:
        """Makes calls of one kind. alone: as `ByRow.run_rows` takes it."""
        network, tensors = calls[0]
        if not is_whole(network):
            network.bind(tensors)
            network.run()
            return
        rows = sum(map(count, calls))
        if is_by_row(network) and len(calls) == 1:
            room = tensors
        else:
            room = self._room(calls[0], 1 << (rows - 1).bit_length())
            if is_by_row(network):
                room = {name: tensor.rows(0, rows) for name, tensor in room.items()}
        if room is not tensors:
            _gather(network, calls, room)
        if is_by_row(network):
            network.run_rows(room, alone)
        else:
            network.bind(room)
            network.run()
        if room is not tensors:
            _scatter(network, calls, room)

    def _room(self, call: Call, rows: int) -> Mapping[str, Tensor]:
        """Tensors for so many rows of calls of that kind, the same for the same number."""
        network, tensors = call
        assert is_whole(network)
        key = kind(call), rows
        if key not in self._rooms:
            if len(self._rooms) >= _ROOMS:
                self._rooms.pop(next(iter(self._rooms)))
            self._rooms[key] = {
                name: Tensor.empty((rows, *tensors[name].shape[1:]), tensors[name].dtype)
                for name in (*network.inputs, *network.outputs)
            }
        return self._rooms[key]

    def clear(self) -> None:
        """Frees the tensors that rows are copied to."""
        self._rooms.clear()


def by_rows(running: Running[T]) -> T:
    """What the run returns, its calls made one by one as those of several runs are made together:
    rows become what they become there."""
    together = Together()
    return made(running, lambda call: together.make([call]))


def _gather(network: Whole, calls: Sequence[Call], room: Mapping[str, Tensor]) -> None:
    for name in network.inputs:
        target, begin = memoryview(room[name]).cast("B"), 0
        for _, tensors in calls:
            source = memoryview(tensors[name]).cast("B")
            target[begin : begin + len(source)] = source
            begin += len(source)
        side = len(target) // room[name].shape[0]
        last = target[begin - side : begin]
        for start in range(begin, len(target), side):
            target[start : start + side] = last


def _scatter(network: Whole, calls: Sequence[Call], room: Mapping[str, Tensor]) -> None:
    for name in network.outputs:
        made, begin = memoryview(room[name]).cast("B"), 0
        for _, tensors in calls:
            target = memoryview(tensors[name]).cast("B")
            target[:] = made[begin : begin + len(target)]
            begin += len(target)
