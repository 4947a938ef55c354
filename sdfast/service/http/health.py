"""/healthz: the process answers. /readyz: pictures would be drawn, and right. /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from .errors import RESPONSES, Problem
from .settings import Settings

if TYPE_CHECKING:
    from ..service import Service


def router(service: Service, settings: Settings) -> APIRouter:
    routes = APIRouter(tags=["health"], responses=RESPONSES)

    @routes.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz", summary="Whether requests are accepted")
    async def readyz() -> Response:
        reason = service.readiness()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return Problem(503, reason, "unavailable", headers={"retry-after": "1"}).response("/")

    @routes.get("/metrics", summary="In the text format of Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    for path, route in (("/healthz", healthz), ("/readyz", readyz)):
        routes.head(path, include_in_schema=False)(route)
    return routes
