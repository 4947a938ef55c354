"""The worker: a process that holds the engines and draws what the service sends it.

    python -m sdfast.service.worker FD

FD is its end of the socket; the first message says what to open. It ends with the service: when
the socket does, at once.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

from PIL import Image

from .. import pipeline
from ..devices.calls import Running
from ..errors import EngineError, SdfastError
from ..pipeline import Pipeline, Result
from ..plans.host import CpuPlans
from ..provenance import Origin
from ..request import Request
from .batcher import Batcher, End, Made, Tick
from .frames import Frame, packed, receive
from .memory import Footprint
from .opening import Opening

_GOLDEN_SEED, _GOLDEN_STEPS = 20250926, 4
_NICER = 5
_TOLD = 0.025  # seconds between tellings of steps: those that take less are told some at a time
_WANT = re.compile("out.of.memory|alloc|available memory", re.IGNORECASE)


class Worker:
    """Runs of all bundles, whose calls are made together where they are alike."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._inbox: SimpleQueue[Frame | Made] = SimpleQueue()
        self._steps: list[Mapping[str, Any]] = []  # and progress by job: what is not told yet
        self._progress: dict[str, tuple[int, int | None]] = {}
        self._told = 0.0
        opening = Opening(**receive(connection).said)
        Thread(target=self._read, daemon=True).start()
        self._pipelines = {
            name: pipeline.load(
                bundle,
                opening.backend,
                opening.device,
                opening.threads,
                precision=opening.precision,
                throughput=True,
                graphs=pipeline.LOOP,
                lora_dir=opening.lora_dir,
            )
            for name, bundle in opening.bundles.items()
        }
        self._controls, self._threads = opening.controls, opening.threads
        self._footprint = Footprint(next(iter(self._pipelines.values())).free)
        self._batcher = Batcher(opening.rows, opening.order, opening.threads, self._inbox)

    def serve(self) -> None:
        """Draws until the socket ends."""
        opened = {
            name: asdict(Origin.of(one, self._threads, throughput=True).unnamed())
            for name, one in self._pipelines.items()
        }
        on_cpu = all(one.device == "cpu" for one in self._pipelines.values())
        memory = {
            "room": self._footprint.room,
            "idle": self._footprint.idle,
            "together": 1 if on_cpu else CpuPlans.batch,  # on a CPU each core has rows of its own
        }
        self._send("opened", models=opened, memory=memory)
        asked = deque[Frame]()
        while True:
            self._batcher.begin()
            try:
                said = self._inbox.get(not asked, _TOLD if self._steps else None)
            except Empty:  # what was made is finished first, so that no core waits
                if asked:
                    self._heed(asked.popleft())
                else:
                    self._tell()
                continue
            if isinstance(said, Frame):
                asked.append(said)
            else:
                self._report(self._batcher.finish(said))

    def _heed(self, frame: Frame) -> None:
        said = frame.said
        job = said["id"]
        if said["do"] == "cancel":
            self._batcher.drop(job)
            self._progress.pop(job, None)
            self._send("dropped", job)
            return
        drawn = self._pipelines[said["model"]]
        try:
            if said["do"] == "golden":
                running = drawn.drawing(golden(drawn, said["small"]))
            else:
                running = self._drawing(drawn, job, said)
        except Exception as error:
            self._end(job, error)
            return
        if (end := self._batcher.join(job, running, said["priority"], said["seconds"])) is not None:
            self._end(job, end)

    def _drawing(self, drawn: Pipeline, job: str, said: Mapping[str, Any]) -> Running[Result]:
        def progress(done: int, evaluations: int | None) -> None:
            self._progress[job] = done, evaluations

        def preview(pictures: list[Image.Image], done: int, evaluations: int | None) -> None:
            self._send("preview", job, pictures, done=done, evaluations=evaluations)

        asked, every = said["request"], said["preview_every"]
        for one in asked["control"] or ():
            one["bundle"] = self._controls[one["bundle"]]
        request = Request.from_dict(asked)
        if every is None:
            return drawn.drawing(request, progress)
        return drawn.drawing(request, progress, preview, every)

    def _report(self, tick: Tick) -> None:
        self._steps.append(
            {
                "rows": tick.rows,
                "seconds": tick.seconds,
                "share": tick.share,
                "at_once": tick.at_once,
                "latents": tick.latents,
                "run": tick.runs[0],
                "shrunk": tick.shrunk,
            }
        )
        if tick.ends or monotonic() - self._told > _TOLD:
            self._tell()
        for job, end in tick.ends:
            self._end(job, end)

    def _tell(self) -> None:
        """Of the steps since it told the last time."""
        oldest = self._batcher.oldest
        self._send("stepped", steps=self._steps, progress=self._progress, oldest=oldest)
        self._steps, self._progress, self._told = [], {}, monotonic()

    def _end(self, job: str, end: End) -> None:
        if isinstance(end, Result):
            blank = any(map(_blank, end.images))
            timings = dict(end.timings)
            more = {"timings": timings, "blank": blank, "grown": self._footprint.grown()}
            self._send("drawn", job, end.images, seeds=end.seeds, **more)
            return
        kind = type(end).__name__
        if isinstance(end, SdfastError) and not isinstance(end, EngineError):
            self._send("failed", job, kind=kind, message=str(end))
            return
        kind = "OutOfMemory" if _of_memory(end) else "Broken"
        trace = "".join(traceback.format_exception(end))
        self._send("failed", job, kind=kind, message=str(end), trace=trace)

    def _send(
        self, said: str, job: str = "", pictures: Sequence[Image.Image] = (), **more: Any
    ) -> None:
        frame = Frame({"said": said, "id": job, **more}, tuple(pictures))
        self._connection.sendall(packed(frame))

    def _read(self) -> None:
        try:
            while True:
                self._inbox.put(receive(self._connection))
        except OSError:
            os._exit(0)  # the service is gone, and with it who would take what is drawn


def golden(drawn: Pipeline, small: bool = False) -> Request:
    """A request of which every worker is to draw the same picture. small: as small as it can be,
    which tells what memory a larger one takes."""
    sizes = drawn.bundle.sizes
    if small:
        sizes = replace(sizes, width=sizes.minimum, height=sizes.minimum)
    return Request(
        "a lighthouse by the sea",
        steps=_GOLDEN_STEPS,
        seed=_GOLDEN_SEED,
        width=sizes.width,
        height=sizes.height,
    )


def _of_memory(error: Exception) -> bool:
    """Whether it is for want of memory, by the words of the library that failed."""
    said = str(error.__cause__ or error)
    failed = isinstance(error, EngineError) and _WANT.search(said) is not None
    return failed or isinstance(error, MemoryError)


def _blank(image: Image.Image) -> bool:
    """Whether all of its pixels are alike: what becomes of values that are not finite."""
    return image.convert("RGB").getcolors(1) is not None


def main(descriptor: int) -> None:
    """Serves the other end of that socket."""
    # Who stops the service stops the worker by its socket, after what it draws.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICER)  # the service has an answer for everybody, also when all cores draw
    connection = socket.socket(fileno=descriptor)
    try:
        worker = Worker(connection)
    except SdfastError as error:
        said = {"said": "unusable", "id": "", "kind": type(error).__name__, "message": str(error)}
        connection.sendall(packed(Frame(said)))
        return
    worker.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
