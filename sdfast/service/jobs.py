"""Jobs: requests that a service has accepted, each of which ends in exactly one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

from PIL import Image

from ..provenance import Inputs, Provenance
from ..request import Request

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    state: "waiting" in the queue, "running", "done" or "failed"
    done, evaluations: of the network; evaluations is None for a sampler whose number depends on
        the picture
    seconds_left: predicted; None where nothing is known yet
    previews: what its pictures would be if it ended now, a few at a time small pictures, where it
        was asked for; those of the latest evaluation that had some
    previewed: the evaluation they are of; 0 for none yet
    """

    state: State
    done: int = 0
    evaluations: int | None = None
    seconds_left: float | None = None
    previews: tuple[Image.Image, ...] = ()
    previewed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a job brought.

    images: one for each seed; request: with every default filled in
    timings: seconds by stage: those of Result, and "queue"
    model: name of the bundle
    made: how they were drawn, for their files; it does not name the machine
    """

    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    request: Request
    timings: Mapping[str, float]
    model: str
    made: Provenance


@dataclass(eq=False)
class Job:
    """One request on its way.

    id: that nobody else has; owner: who may cancel it and see it
    deadline: on the monotonic clock
    seconds: of work that it was predicted to be; left: of that, what is left
    pixels: of its largest picture; inputs: digests of what it is drawn from
    sent: when the worker got it
    """

    id: str
    owner: str
    model: str
    request: Request
    priority: int
    deadline: float
    seconds: float
    pixels: int
    inputs: Inputs
    preview_every: int | None
    begun: float = field(default_factory=monotonic)
    progress: Progress = field(default_factory=lambda: Progress("waiting"))

    def __post_init__(self) -> None:
        self.left, self.sent = self.seconds, self.begun
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._outcome.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self._outcome.done()

    async def result(self) -> Outcome:
        """What it brought. Raises a Refusal, or an SdfastError for a request that is wrong in a way
        that shows late. Whoever stops waiting does not stop the job."""
        return await asyncio.shield(self._outcome)

    async def events(self) -> AsyncIterator[Progress]:
        """Its progress whenever it has changed, the latest alone: a reader that is slow misses some
        and holds up nobody. Ends when the job has."""
        told: Progress | None = None
        while True:
            if self.progress is not told:
                told = self.progress
                yield told
            elif self.ended:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def tell(self, progress: Progress) -> None:
        self.progress = progress
        self._changed.set()

    def end(self, outcome: Outcome | Exception) -> None:
        """Answers it, once."""
        if self.ended:
            return
        done = self.progress
        if isinstance(outcome, Outcome):
            self._outcome.set_result(outcome)
            self.tell(Progress("done", done.done, done.evaluations, 0.0))
        else:
            self._outcome.set_exception(outcome)
            self.tell(Progress("failed", done.done, done.evaluations))
