"""The batcher: runs of several requests side by side, a step of each at a time.

A run says which network it needs next (devices/calls.py). The batcher makes calls of its runs that
are of one kind as one, and lets each run go on with its part: whatever their prompts, samplers,
steps, guidance and seeds are. A run joins at the next call, and leaves when it ends or is dropped.

Where cores can compute rows of their own, and there are rows for them, each takes the next ones
when it is done with its last, and waits for no other. Any other call has the machine for itself.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter
from typing import Any

from .. import cpu
from ..devices.calls import Call, Running
from ..devices.together import Together, count, is_by_row, kind, part
from ..pipeline import Result

End = Result | Exception

_PATIENCE = 32  # calls of others after which a run is next, whatever comes before it
# Seconds that a core's call of several rows may take. What a call takes besides its rows, about a
# millisecond, is little of that; rows that take longer gain nothing from each other.
_SPELL = 0.02
_KINDS = 64  # of calls whose times are kept


@dataclass(eq=False)
class Run:
    """A request that is drawn.

    left: seconds that it was predicted to take; less with every call
    served: the number of the last call that it has rows in; begun: that of the first
    call: that it waits for, of so many rows
    given, made: rows of the call that were given to cores, and those that were computed
    out: calls that rows of it are in
    failed: what came of such a call; alone: its call is made once more, with nothing beside it,
        where there were so many rows at once
    """

    id: str
    running: Running[Result]
    priority: int
    left: float
    begun: int
    served: int
    call: Call | None = None
    kind: Hashable | None = None
    rows: int = 0
    given: int = 0
    made: int = 0
    out: int = 0
    failed: Exception | None = None
    alone: int = 0

    def wait_for(self, call: Call) -> None:
        if self.call is None or any(a is not b for a, b in zip(call, self.call, strict=True)):
            self.call, self.kind, self.rows = call, kind(call), count(call)
        self.given = self.made = self.alone = 0

    def again(self, at_once: int) -> None:
        self.given = self.made = 0
        self.failed, self.alone = None, at_once

    def give(self, rows: int) -> Call:
        """The next rows of its call."""
        assert self.call is not None
        start, self.given, self.out = self.given, self.given + rows, self.out + 1
        return part(self.call, start, self.given)


@dataclass(frozen=True)
class Made:
    """A call that was made.

    parts: the runs with rows in it, and how many
    place: that made it; whole: whether it had the machine for itself
    at_once: rows that were given out when it was, its own among them
    """

    parts: tuple[tuple[Run, int], ...]
    place: Together
    whole: bool
    at_once: int
    seconds: float
    error: Exception | None


@dataclass(frozen=True)
class Tick:
    """What one call brought.

    rows: of the network; seconds: that they took; runs: whose rows they were
    share: of the machine, that computed them
    at_once: rows of all networks that were given out when it was
    latents: height × width of what a U-Net was called on; 0 for another network
    ends: runs that ended, and how
    shrunk: whether less is computed at once from now on, since what had failed beside others did
        not alone: there was too little memory
    """

    rows: int
    seconds: float
    share: float
    at_once: int
    latents: int
    runs: tuple[str, ...]
    ends: tuple[tuple[str, End], ...] = ()
    shrunk: bool = False


class Batcher:
    """Runs, and whose turn it is. For one thread.

    rows: of networks that are computed at once at most, above which a run alone may go
    order: "fair" for the one that waited longest, "shortest" for the one with the least work left;
        a higher priority comes first in both, and nothing waits for more than `_PATIENCE` calls
    cores: 0 for those of this machine
    done: is given each call that was made, for `finish`
    """

    def __init__(
        self, rows: int, order: str = "fair", cores: int = 0, done: SimpleQueue[Any] | None = None
    ) -> None:
        self.rows, self.runs = rows, dict[str, Run]()
        self._order, self._number = order, 0
        self._cores = cores or cpu.cores()
        self._pool = ThreadPoolExecutor(self._cores)
        # One more than cores: its call is begun as soon as one of the others is made.
        self._idle = [Together() for _ in range(self._cores + 1)]
        self._done: SimpleQueue[Any] = SimpleQueue() if done is None else done
        self._out: dict[Together, int] = {}  # rows that are given out
        self._beside: dict[Together, int] = {}  # calls that were out at a time, while they were
        self._begun: dict[Together, float] = {}  # since when which of them are computed
        self._row_seconds: dict[Hashable | None, float] = {}  # of one core, by kind

    @property
    def busy(self) -> bool:
        """Whether there are calls to `finish`."""
        return len(self._idle) <= self._cores

    @property
    def oldest(self) -> float:
        """Seconds for which the oldest call is made; 0 for none."""
        now = perf_counter()
        return now - min(list(self._begun.values()), default=now)

    def join(self, job: str, running: Running[Result], priority: int, seconds: float) -> End | None:
        """Takes a run, up to its first call. Returns how it ended if it has none."""
        self.runs[job] = run = Run(job, running, priority, seconds, self._number, self._number)
        return self._go_on(run)

    def drop(self, job: str) -> None:
        """Ends a run before its next call."""
        if (run := self.runs.pop(job, None)) is not None and not run.out:
            run.running.close()

    def tick(self) -> Tick | None:
        """Begins what can be, and finishes the call that is made first; None where there is no run.
        For those who have nothing else to wait for."""
        self.begin()
        return self.finish(self._done.get()) if self.busy else None

    def begin(self) -> None:
        """Has calls made of what waits, as far as there are cores that have nothing to do."""
        while self._idle and (waiting := self._waiting()):
            whole, out = self._whole(waiting[0]), sum(self._out.values())
            if self.busy and (whole or out >= self.rows):
                return
            self._number += 1
            most = self.rows if whole else self._share(waiting[0].kind, self.rows - out)
            place, parts = self._idle.pop(), self._parts(waiting, whole, most)
            calls = [run.give(rows) for run, rows in parts]
            self._out[place] = sum(rows for _, rows in parts)
            for run, _ in parts:
                run.served = self._number
            for each in self._out:
                self._beside[each] = max(self._beside.get(each, 0), len(self._out))
            told = place, parts, calls, whole, out + self._out[place]
            if whole:  # by the thread that a GPU knows
                self._make(*told)
                return
            self._pool.submit(self._make, *told)

    def _waiting(self) -> list[Run]:
        """Those with rows that nobody has, in the order of their turns."""
        found = [run for run in self.runs.values() if run.given < run.rows and not run.failed]
        return sorted(found, key=self._turn)

    def _turn(self, run: Run) -> tuple[float, ...]:
        waited = self._number - run.served
        if waited > _PATIENCE:
            return (-1.0, run.served)
        if self._order == "shortest":
            return (0.0, -run.priority, run.left, run.served)
        return (0.0, -run.priority, run.served, run.begun)

    def _whole(self, first: Run) -> bool:
        """Whether its call is to have the machine for itself."""
        assert first.call is not None
        # Cores that would have no rows of their own may help with those that there are.
        few = 2 * sum(run.rows for run in self.runs.values()) <= self._cores
        return first.alone > 0 or few or not is_by_row(first.call[0])

    def _parts(self, waiting: Sequence[Run], whole: bool, most: int) -> tuple[tuple[Run, int], ...]:
        """Whose rows the next call has, and how many of each. most: of all, where they can be cut
        up, or there are several."""
        first = waiting[0]
        assert first.call is not None
        if first.alone:
            return ((first, 1 if is_by_row(first.call[0]) else first.rows),)
        if first.kind is None:
            return ((first, first.rows),)
        found, rows = list[tuple[Run, int]](), 0
        for run in waiting:
            if run.kind != first.kind or run.alone:
                continue
            left = run.rows - run.given
            taken = left if whole else min(left, most - rows)
            if found and rows + taken > most:
                break
            found.append((run, taken))
            rows += taken
            if rows >= most:
                break
        return tuple(found)

    def _share(self, kind: Hashable | None, most: int) -> int:
        """Rows of that kind that a core takes at once, `most` at most: so many that as many are
        left for the next, but the two of a guided picture together where no core is idle by that.
        """
        rows = sum(run.rows for run in self.runs.values())
        fair = max(rows // (self._cores + 1), min(2, rows // self._cores))
        worth = int(_SPELL / self._row_seconds.get(kind, _SPELL))
        return max(min(fair, worth, most), 1)

    def _make(
        self,
        place: Together,
        parts: tuple[tuple[Run, int], ...],
        calls: Sequence[Call],
        whole: bool,
        at_once: int,
    ) -> None:
        begun, error = perf_counter(), None
        self._begun[place] = begun
        try:
            place.make(calls, whole)
        except Exception as found:
            error = found
        del self._begun[place]
        seconds = perf_counter() - begun
        self._done.put(Made(parts, place, whole, at_once, seconds, error))

    def finish(self, made: Made) -> Tick:
        """Lets the runs of a call that was made go on, as far as they have all of their rows."""
        beside = self._beside.pop(made.place)
        share = 1.0 if made.whole else 1 / min(self._cores, beside)
        rows, before = self._out.pop(made.place), self.rows
        self._idle.append(made.place)
        if made.error is not None:
            made.place.clear()
        elif not made.whole:
            self._saw(made.parts[0][0].kind, made.seconds / rows)
        names, latents = tuple(run.id for run, _ in made.parts), _latents(made.parts[0][0])
        ends = list[tuple[str, End]]()
        for run, of_run in made.parts:
            run.out, run.made = run.out - 1, run.made + of_run
            run.left -= made.seconds * share * of_run / rows
            run.failed = run.failed or made.error
            if not run.out and (end := self._after(run, made)) is not None:
                ends.append((run.id, end))
        told = rows, made.seconds, share, made.at_once, latents, names
        return Tick(*told, tuple(ends), shrunk=self.rows < before)

    def _saw(self, kind: Hashable | None, seconds: float) -> None:
        self._row_seconds.pop(kind, None)
        while len(self._row_seconds) >= _KINDS:
            self._row_seconds.pop(next(iter(self._row_seconds)))
        self._row_seconds[kind] = seconds

    def _after(self, run: Run, made: Made) -> End | None:
        """What becomes of a run of which no core has rows any more, by its last call: how it ended,
        if it has."""
        if self.runs.get(run.id) is not run:  # it was dropped meanwhile
            run.running.close()
        elif run.failed and not (made.whole and len(made.parts) == 1):
            run.again(made.at_once)
        elif run.failed:
            self.drop(run.id)
            return run.failed
        elif run.made == run.rows:
            if run.alone:  # that others were beside it is why it failed
                self.rows = max(min(self.rows, run.alone // 2), 1)
            return self._go_on(run)
        return None

    def _go_on(self, run: Run) -> End | None:
        """Up to its next call, or its end."""
        try:
            run.wait_for(next(run.running))
            return None
        except StopIteration as end:
            self.runs.pop(run.id, None)
            result: Result = end.value
            return result
        except Exception as error:
            self.runs.pop(run.id, None)
            return error


def _latents(run: Run) -> int:
    assert run.call is not None
    _, tensors = run.call
    return math.prod(tensors["latent"].shape[2:]) if "noise" in tensors else 0
