"""The worker's process, as the service sees it."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from time import monotonic

from .frames import Frame, next_frame, packed
from .opening import Opening

# Without -P what lies in the working folder is imported first: a checkout without its native core,
# or a json.py of somebody else's.
COMMAND = (sys.executable, "-P", "-m", "sdfast.service.worker")
_STDERR = 2  # not that of `sys.stderr`, which in a notebook is no file


class Process:
    """A worker that was started, and the service's end of the socket to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self.heard = monotonic()  # of it for the last time

    @classmethod
    async def start(cls, opening: Opening, command: Sequence[str] = COMMAND) -> Process:
        """Starts one. command: that takes the number of the socket as its last argument."""
        ours, theirs = socket.socketpair()
        try:
            # In a session of its own: who interrupts the service in a terminal does not mean it.
            process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=_STDERR,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        started = cls(process, reader, writer)
        started.send(Frame(asdict(opening)))
        return started

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: Frame) -> None:
        if not self._writer.is_closing():
            self._writer.write(packed(frame))

    async def next(self) -> Frame:
        """What it says next. Raises ConnectionError when it is gone."""
        frame = await next_frame(self._reader)
        self.heard = monotonic()
        return frame

    def kill(self) -> None:
        """At once: what hangs heeds nothing else."""
        with suppress(ProcessLookupError):  # it has died meanwhile
            self._process.kill()

    async def close(self) -> None:
        """Ends it, and waits until it has."""
        self._writer.close()
        self.kill()
        await self._process.wait()
