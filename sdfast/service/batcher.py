"""The batcher: runs of several requests side by side, a step of each at a time.

A run says which network it needs next (devices/calls.py). At each tick the batcher makes those
calls of its runs that are alike as one, and lets each run go on with its part: whatever their
prompts, samplers, steps, guidance and seeds are. A run joins at the next tick, and leaves when it
ends or is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from ..devices.calls import Call, Running
from ..devices.together import Together, alike
from ..errors import EngineError
from ..pipeline import Result

End = Result | Exception


@dataclass(eq=False)
class Run:
    """A request that is drawn.

    left: seconds that it was predicted to take; less with every call
    served: the tick of its last call; begun: that of its first
    """

    id: str
    running: Running[Result]
    priority: int
    left: float
    begun: int
    served: int = 0
    call: Call | None = None


@dataclass(frozen=True)
class Tick:
    """What one call brought.

    rows: of the network; seconds: that they took; runs: whose calls it was
    latents: height × width of what U-Nets were called on; 0 where another network was among them
    ends: runs that ended, and how
    shrunk: whether there was too little memory for as many rows
    """

    rows: int
    seconds: float
    latents: int
    runs: tuple[str, ...]
    ends: tuple[tuple[str, End], ...] = ()
    shrunk: bool = False


@dataclass
class Batcher:
    """Runs, and whose turn it is.

    rows: of the network in one call at most, above which a run alone may go
    order: "fair" for the one that waited longest, "shortest" for the one with the least work left;
        a higher priority comes first in both, and nothing waits for more than `_PATIENCE` ticks
    """

    rows: int
    order: str = "fair"
    runs: dict[str, Run] = field(default_factory=dict)
    _together: Together = field(default_factory=Together)
    _number: int = 0

    def join(self, job: str, running: Running[Result], priority: int, seconds: float) -> End | None:
        """Takes a run, up to its first call. Returns how it ended if it has none."""
        run = Run(job, running, priority, seconds, self._number, self._number)
        self.runs[job] = run
        return self._go_on(run)

    def drop(self, job: str) -> None:
        """Ends a run before its next call."""
        if (run := self.runs.pop(job, None)) is not None:
            run.running.close()

    def tick(self) -> Tick | None:
        """Makes one call, and lets those whose call it was go on; None where there is no run."""
        if not self.runs:
            return None
        self._number += 1
        chosen = self._chosen()
        rows, latents = sum(map(_rows, chosen)), _latents(chosen)
        begun = perf_counter()
        failed, shrunk = self._make(chosen)
        seconds = perf_counter() - begun
        ends = list[tuple[str, End]]()
        for run in chosen:
            run.served = self._number
            run.left -= seconds / len(chosen)
            error = failed.get(run.id)
            if error is not None:
                self.drop(run.id)
            end = error or self._go_on(run)
            if end is not None:
                ends.append((run.id, end))
        return Tick(rows, seconds, latents, tuple(run.id for run in chosen), tuple(ends), shrunk)

    def _chosen(self) -> list[Run]:
        """Those whose turn it is and whose calls are alike, the first in order among them."""
        waiting = sorted(self.runs.values(), key=self._turn)
        calls = {id(run.call): run for run in waiting}
        first = alike([run.call for run in waiting if run.call is not None])[0]
        chosen, rows = list[Run](), 0
        for call in first:
            run = calls[id(call)]
            rows += _rows(run)
            if chosen and rows > self.rows:
                break
            chosen.append(run)
        return chosen

    def _turn(self, run: Run) -> tuple[float, ...]:
        waited = self._number - run.served
        if waited > _PATIENCE:
            return (-1.0, run.served)
        if self.order == "shortest":
            return (0.0, -run.priority, run.left, run.served)
        return (0.0, -run.priority, run.served, run.begun)

    def _make(self, runs: Sequence[Run]) -> tuple[dict[str, Exception], bool]:
        """Makes the runs' calls as one. Where that fails, for want of memory it may be, each by
        itself: who fails alone has failed, and later calls have half as many rows."""
        calls = [run.call for run in runs if run.call is not None]
        try:
            self._together.make(calls)
            return {}, False
        except (EngineError, MemoryError) as error:
            if len(runs) == 1:
                return {runs[0].id: error}, False
        self._together.clear()
        self.rows = max(sum(_rows(run) for run in runs) // 2, 1)
        failed: dict[str, Exception] = {}
        for run in runs:
            failed |= self._make([run])[0]
        return failed, True

    def _go_on(self, run: Run) -> End | None:
        """Up to its next call, or its end."""
        try:
            run.call = next(run.running)
            return None
        except StopIteration as end:
            self.runs.pop(run.id, None)
            result: Result = end.value
            return result
        except Exception as error:
            self.runs.pop(run.id, None)
            return error


_PATIENCE = 32


def _rows(run: Run) -> int:
    assert run.call is not None
    _, tensors = run.call
    return next(iter(tensors.values())).shape[0]


def _latents(runs: Sequence[Run]) -> int:
    every = [tensors for _, tensors in (run.call for run in runs if run.call is not None)]
    if not all("noise" in tensors for tensors in every):  # a decoder's rows are beside
        return 0
    return math.prod(every[0]["latent"].shape[2:])
