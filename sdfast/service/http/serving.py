"""Listening: uvicorn over the application, so run that SIGTERM loses nothing.

The first SIGTERM or SIGINT drains: /readyz says no at once, nothing new is accepted, what was
accepted is answered, and the process ends with 0. The second one hurries: what is left is refused.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...errors import BackendUnavailable
from ..service import Service
from .app import app
from .settings import Settings

_HEAD = 32 << 10  # bytes of a request line and headers
_FLUSH = 5  # seconds for answers to leave that are there


def serve(service: Service, settings: Settings, listening: Callable[[str], None]) -> None:
    """Serves until a signal. listening: is told the address, when it is listened at.

    Raises BackendUnavailable where that cannot be, and what keeps the service from starting.
    """
    sock = opened(settings)
    host, port = sock.getsockname()[:2]
    named = f"[{host}]" if ":" in host else host
    made = app(service, settings)
    server = Server(uvicorn_config(made, settings), service, made)
    listening(f"http://{named}:{port}")
    with sock:
        server.run(sockets=[sock])
    if server.failure is not None:
        raise server.failure


def uvicorn_config(made: FastAPI, settings: Settings) -> uvicorn.Config:
    """h11, which bounds the bytes of headers; nothing of what was asked is logged by uvicorn."""
    return uvicorn.Config(
        made,
        http=_protocol(settings.body_seconds),
        ws="none",
        h11_max_incomplete_event_size=_HEAD,
        timeout_graceful_shutdown=_FLUSH,
        access_log=False,
        log_config=None,
        server_header=False,
    )


def opened(settings: Settings) -> socket.socket:
    """The socket, whose connections the system drops where a reader is gone or takes nothing."""
    try:
        host = settings.host.strip("[]")
        family, *_, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        raise BackendUnavailable(
            f"{settings.host}:{settings.port} cannot be listened at ({error.strerror}): choose "
            "another --port or --host"
        ) from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = int(settings.write_seconds * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return sock


class Server(uvicorn.Server):
    """failure: why the service did not start."""

    def __init__(self, config: uvicorn.Config, service: Service, made: FastAPI) -> None:
        super().__init__(config)
        self._service, self._made = service, made
        self._draining: list[asyncio.Task[None]] = []
        self.failure: BaseException | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._made.state.starting.add_done_callback(self._started)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        await super().main_loop()

    def _drain(self) -> None:
        task = asyncio.create_task(self._service.drain())
        self._draining.append(task)
        task.add_done_callback(self._drained)

    def _drained(self, _: asyncio.Task[None]) -> None:
        self.should_exit = True

    def _started(self, starting: asyncio.Task[None]) -> None:
        if not starting.cancelled() and (error := starting.exception()) is not None:
            self.failure = error
            self.should_exit = True


def _protocol(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 that gives up a connection whose request's head does not come within that time."""

    class Protocol(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._heard()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._heard()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._enough()

        def _heard(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self._enough()
            elif self._waiting is None:
                self._waiting = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def _enough(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Protocol
