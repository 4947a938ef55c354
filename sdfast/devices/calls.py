"""Runs that say which networks are to be called, and leave to others when and beside what.

A part of a run is a generator: it yields each call of a large network, and goes on when that was
made. `made` makes the calls of one run in turn; a service makes those of several together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, TypeAlias, TypeVar

from ..tensors import Tensor


class Network(Protocol):
    """What is needed of an engine."""

    def bind(self, tensors: Mapping[str, Tensor], /) -> None: ...
    def run(self) -> None: ...


T = TypeVar("T")
Call: TypeAlias = tuple[Network, Mapping[str, Tensor]]
"""A network, and all tensors that it reads and writes."""
Running: TypeAlias = Generator[Call, None, T]


def made(running: Running[T], make: Callable[[Call], None] | None = None) -> T:
    """What the run returns, its calls made one by one, by `make`. Without it a network is bound
    anew only to other tensors than those of its last call, so these are to be told apart by
    identity."""
    make = make or _bound()
    with closing(running):
        while True:
            try:
                call = next(running)
            except StopIteration as end:
                found: T = end.value
                return found
            make(call)


def _bound() -> Callable[[Call], None]:
    bound: dict[int, Mapping[str, Tensor]] = {}

    def make(call: Call) -> None:
        network, tensors = call
        if bound.get(id(network)) is not tensors:
            network.bind(tensors)
            bound[id(network)] = tensors
        network.run()

    return make


class _Abandoned(BaseException):
    """Ends a function whose calls nobody makes any more."""


def handed(run: Callable[[Callable[[Call], None]], None]) -> Running[None]:
    """The calls that a function makes by the one that it is given, while it waits for each in a
    thread of its own: for functions that cannot be generators."""
    asked: SimpleQueue[Call | BaseException | None] = SimpleQueue()
    answered: SimpleQueue[bool] = SimpleQueue()

    def make(call: Call) -> None:
        asked.put(call)
        if not answered.get():
            raise _Abandoned

    def work() -> None:
        try:
            run(make)
        except BaseException as error:
            asked.put(error)
        else:
            asked.put(None)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (said := asked.get()) is not None:
            if isinstance(said, BaseException):
                raise said
            yield said
            answered.put(True)
    finally:
        answered.put(False)
        thread.join()
