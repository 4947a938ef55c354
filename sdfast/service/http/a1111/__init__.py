"""A1111's dialect, /sdapi/v1, as webuiapi, Open WebUI, SillyTavern and LibreChat speak it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from ..errors import A1111Answer, answers
from ..settings import Settings
from . import drawing, listings, options, png_info, progress

if TYPE_CHECKING:
    from ...service import Service


def router(service: Service, settings: Settings) -> APIRouter:
    """All of its routes."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["A1111"], responses=answers(A1111Answer))
    chosen = options.Chosen(service)
    drawing.add(routes, service, chosen)
    progress.add(routes, service)
    options.add(routes, service, chosen)
    listings.add(routes, service, chosen)
    png_info.add(routes, service.limits)
    return routes
