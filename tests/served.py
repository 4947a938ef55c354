"""A service of the demo bundle, and HTTP servers over it, on a loop in a thread: clients are real
ones, which block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvicorn

from sdfast.service import Limits, Service
from sdfast.service.http.app import app
from sdfast.service.http.serving import uvicorn_config
from sdfast.service.http.settings import Settings

LIMITS = Limits(
    queue=8,
    running=4,
    steps=200,
    images=4,
    pixels=128 * 128,
    body=1 << 20,
    input_pixels=1 << 20,
    deadline=60.0,
    canary=0,
)
_T = TypeVar("_T")


class Serving:
    """A service that is ready, and its loop."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._servers: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []
        self.service = self.call(self._started(limits))

    def call(self, work: Coroutine[Any, Any, _T], seconds: float = 60) -> _T:
        """What a coroutine brings that runs on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def over(self, settings: Settings) -> str:
        """The address of a server of these settings."""
        return self.call(self._listening(settings))

    def settled(self) -> None:
        """Waits until nothing is drawn or waits."""
        self.call(self._settled())

    def close(self) -> None:
        self.call(self._closed())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)

    async def _started(self, limits: Limits) -> Service:
        service = Service(["demo"], backend="onnxruntime", limits=limits)
        await service.start()
        return service

    async def _listening(self, settings: Settings) -> str:
        # The service is there already: the application is not to start it.
        config = uvicorn_config(app(self.service, settings), settings)
        config.lifespan, config.port = "off", 0
        server = uvicorn.Server(config)
        self._servers.append((server, asyncio.create_task(server._serve())))
        while not server.started:
            await asyncio.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    async def _settled(self) -> None:
        async with asyncio.timeout(30):
            while (
                self.service.metrics.running._value.get()
                + self.service.metrics.waiting._value.get()
            ):
                await asyncio.sleep(0.01)

    async def _closed(self) -> None:
        for server, task in self._servers:
            server.should_exit = True
            server.force_exit = True
            await task
        await self.service.close()
