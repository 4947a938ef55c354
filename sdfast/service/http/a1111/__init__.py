"""A1111's dialect, /sdapi/v1, as webuiapi, Open WebUI, SillyTavern and LibreChat speak it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from ..settings import Settings
from . import drawing, listings, options, png_info, progress

if TYPE_CHECKING:
    from ...service import Service


def router(service: Service, settings: Settings) -> APIRouter:
    """All of its routes."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["A1111"])
    chosen = options.Chosen(service)
    for one in (
        drawing.router(service, chosen),
        progress.router(service),
        options.router(service, chosen),
        listings.router(service, chosen),
        png_info.router(service.limits),
    ):
        routes.include_router(one)
    return routes
