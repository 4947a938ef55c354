"""The keeper: that there is a worker, and one that does something."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from time import monotonic

from .frames import Frame
from .limits import Limits
from .opening import Opening
from .process import COMMAND, Process

_LOG = logging.getLogger("sdfast.service")
_LOOK = 0.1  # seconds between looks at what it does
_LONGEST = 30.0  # seconds that a worker which fails again and again is waited with
_COMPILING = 10  # times `limits.stall` that a worker may take before its first picture


class Keeper:
    """Starts a worker, and another one when that is gone or hangs.

    heed: is told what it says; lost: why it is gone
    busy: whether it is to be doing something
    """

    def __init__(
        self,
        opening: Opening,
        limits: Limits,
        heed: Callable[[Frame], None],
        lost: Callable[[str], None],
        busy: Callable[[], bool],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._opening, self._limits, self._command = opening, limits, command
        self._heed, self._lost, self._busy = heed, lost, busy
        self._process: Process | None = None
        self._reason = "died"
        self.failures = 0  # since the last that was good for something
        self._steps: deque[float] = deque([0.0], maxlen=32)  # seconds of the latest
        self._since = math.inf  # when the call was begun that the worker makes for longest
        self.ended = False

    @property
    def pid(self) -> int | None:
        """Of the worker, where there is one."""
        return None if self._process is None else self._process.pid

    def send(self, frame: Frame) -> None:
        """To the worker that there is."""
        if self._process is not None:
            if not self._busy():
                self._process.heard = monotonic()
            self._process.send(frame)

    def proven(self) -> None:
        """The worker that there is does what it is for."""
        self.failures = 0

    def stepped(self, seconds: float) -> None:
        """The worker that there is made a step."""
        self._steps.append(seconds)

    def waits(self, seconds: float) -> None:
        """One of the cores of the worker that there is has made a call for so long: that others go
        on says nothing of that one."""
        self._since = monotonic() - seconds

    def kill(self, reason: str) -> None:
        """For another one to take its place."""
        self._reason = reason
        if self._process is not None:
            self._process.kill()

    async def run(self) -> None:
        """Until it is cancelled, or `ended` is set."""
        while not self.ended:
            await asyncio.sleep(min(0.1 * 2**self.failures, _LONGEST) if self.failures else 0)
            self.failures += 1
            self._reason, self._since = "died", math.inf
            try:
                self._process = process = await Process.start(self._opening, self._command)
            except OSError as error:  # too many files or processes: there may be fewer later
                _LOG.error("the worker cannot be started: %s", error.strerror)
                self._lost("could not be started")
                continue
            watch = asyncio.create_task(self._watch(process))
            try:
                while True:
                    self._heed(await process.next())
            except ConnectionError:
                pass
            except Exception:
                self._reason = "said what makes no sense"
                _LOG.exception("what the worker says cannot be heeded")
            finally:
                self._process = None
                watch.cancel()
                await process.close()
            if not self.ended:
                _LOG.error("the worker is gone: %s", self._reason)
            self._lost(self._reason)

    async def _watch(self, process: Process) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            bound = max(self._limits.stall, 20 * median(self._steps))
            if self.failures:
                bound = max(bound, _COMPILING * self._limits.stall)
            if not self._busy():
                process.heard, self._since = monotonic(), math.inf
            elif monotonic() - min(process.heard, self._since) > bound:
                self.kill("hung")
                return
