"""The worker: a process that holds the engines and draws what the service sends it.

    python -m sdfast.service.worker FD

FD is its end of the socket; the first message says what to open. It ends with the service: when
the socket does, at once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from PIL import Image

from .. import pipeline
from ..devices.calls import Running
from ..errors import EngineError, SdfastError
from ..pipeline import Pipeline, Result
from ..request import Request
from .batcher import Batcher, End, Tick
from .frames import Frame, packed, receive
from .opening import Opening

_GOLDEN_SEED, _GOLDEN_STEPS = 20250926, 4
_NICER = 5


class Worker:
    """Runs of all bundles, whose calls are made together where they are alike."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._inbox: SimpleQueue[Frame] = SimpleQueue()
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
        self._controls = opening.controls
        self._batcher = Batcher(opening.rows, opening.order)

    def serve(self) -> None:
        """Draws until the socket ends."""
        opened = {
            name: {"backend": one.backend, "precision": one.precision, "device": one.device}
            for name, one in self._pipelines.items()
        }
        self._send("opened", models=opened)
        while True:
            for frame in self._received(wait=not self._batcher.runs):
                self._heed(frame)
            if (tick := self._batcher.tick()) is not None:
                self._report(tick)

    def _received(self, wait: bool) -> Iterator[Frame]:
        try:
            yield self._inbox.get(block=wait)
            while True:
                yield self._inbox.get_nowait()
        except Empty:
            return

    def _heed(self, frame: Frame) -> None:
        said = frame.said
        job = said["id"]
        if said["do"] == "cancel":
            self._batcher.drop(job)
            self._send("dropped", job)
            return
        drawn = self._pipelines[said["model"]]
        try:
            if said["do"] == "golden":
                running = drawn.drawing(golden(drawn))
            else:
                running = self._drawing(drawn, job, said)
        except Exception as error:
            self._end(job, error)
            return
        if (end := self._batcher.join(job, running, said["priority"], said["seconds"])) is not None:
            self._end(job, end)

    def _drawing(self, drawn: Pipeline, job: str, said: Mapping[str, Any]) -> Running[Result]:
        def progress(done: int, evaluations: int | None) -> None:
            self._send("progress", job, done=done, evaluations=evaluations)

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
        self._send(
            "tick",
            rows=tick.rows,
            seconds=tick.seconds,
            latents=tick.latents,
            runs=tick.runs,
            shrunk=tick.shrunk,
        )
        for job, end in tick.ends:
            self._end(job, end)

    def _end(self, job: str, end: End) -> None:
        if isinstance(end, Result):
            blank = any(map(_blank, end.images))
            timings = dict(end.timings)
            self._send("drawn", job, end.images, seeds=end.seeds, timings=timings, blank=blank)
            return
        kind = type(end).__name__
        if isinstance(end, SdfastError) and not isinstance(end, EngineError):
            self._send("failed", job, kind=kind, message=str(end))
            return
        kind = "OutOfMemory" if isinstance(end, EngineError | MemoryError) else "Broken"
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


def golden(drawn: Pipeline) -> Request:
    """A small request of which every worker is to draw the same picture."""
    sizes = drawn.bundle.sizes
    return Request(
        "a lighthouse by the sea",
        steps=_GOLDEN_STEPS,
        seed=_GOLDEN_SEED,
        width=sizes.width,
        height=sizes.height,
    )


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
