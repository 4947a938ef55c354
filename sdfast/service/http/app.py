"""The application: every route over one service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from ... import __version__
from . import a1111, errors, generate, health, hugging_face, kserve, openai, options, page
from .guard import Guard
from .settings import Settings

if TYPE_CHECKING:
    from ..service import Service

ROUTERS: tuple[Callable[[Service, Settings], APIRouter], ...] = (
    health.router,
    openai.router,
    generate.router,
    a1111.router,
    hugging_face.router,
    kserve.router,
    options.router,
    page.router,
)
"""In the order in which paths are matched."""
_log = logging.getLogger("sdfast.http")


def app(service: Service, settings: Settings | None = None) -> FastAPI:
    """Serves `service`, which is started with the application, and drained when it ends. It listens
    while the service starts: /healthz says at once that it lives, /readyz when it is ready."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(made: FastAPI) -> AsyncIterator[None]:
        made.state.starting = asyncio.create_task(service.start())
        made.state.starting.add_done_callback(_told)
        try:
            yield
        finally:
            if not made.state.starting.done():
                made.state.starting.cancel()
            else:
                await service.drain()
            await service.close()

    made = FastAPI(
        title="sdfast",
        version=__version__,
        description="Stable Diffusion, a step of many requests at a time.",
        lifespan=lifespan,
        docs_url=None,  # pages of scripts from elsewhere, which would have the caller's key
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    errors.install(made)
    for router in ROUTERS:
        made.include_router(router(service, settings))
    made.add_middleware(Guard, limits=service.limits, settings=settings)
    if settings.cors_origins:
        made.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "x-request-id", "traceparent"],
            expose_headers=["x-request-id", "retry-after", "retry-after-ms", "x-sdfast-ignored"],
        )
    return made


def _told(starting: asyncio.Task[None]) -> None:
    if not starting.cancelled() and (error := starting.exception()) is not None:
        _log.error("the service does not start: %s", error)
