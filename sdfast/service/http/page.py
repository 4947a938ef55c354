"""The page at `/`, and what it may ask for.

The page is page/index.html, in which every stylesheet and script that it links to is put in place
of the link when the service starts: one answer is all that a browser needs, and the page runs
nothing but what it came with. Each of them is allowed by its digest (Content-Security-Policy), and
the page speaks to no other host.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from math import log
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from ... import __version__, samplers, schedules
from ...bundle import Defaults, Sizes
from ...request import MAX_COUNT, MAX_STEPS
from ...starts import STRENGTH

if TYPE_CHECKING:
    from ..gate import Model
    from ..limits import Limits
    from ..service import Service
    from .settings import Settings

RATIOS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))
"""Of the sides of pictures that are offered, width : height."""
_LINK = re.compile(
    r'<link rel="stylesheet" href="(?P<style>[a-z_]+\.css)">'
    r'|<script src="(?P<script>[a-z_]+\.js)"></script>'
)


@dataclass(frozen=True)
class Page:
    """The bytes of the page, and the headers that it is sent with."""

    body: bytes
    headers: Mapping[str, str]


def router(service: Service, settings: Settings) -> APIRouter:
    """`/` and `/v1/options`."""
    routes = APIRouter()
    page = assembled()

    @routes.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        if request.headers.get("if-none-match") == page.headers["ETag"]:
            return Response(status_code=304, headers=dict(page.headers))
        return Response(page.body, media_type="text/html", headers=dict(page.headers))

    @routes.get("/v1/options", summary="What a request may ask for")
    async def allowed() -> dict[str, Any]:
        """The models with their sizes, defaults and presets; samplers, schedules and limits."""
        return options(service.models, service.limits)

    return routes


def assembled() -> Page:
    """The page with its stylesheets and scripts in it."""
    folder = resources.files(__package__) / "page"
    allowed: dict[str, list[str]] = {"style": [], "script": []}

    def inlined(link: re.Match[str]) -> str:
        kind = str(link.lastgroup)
        text = (folder / link[kind]).read_text("utf-8")
        allowed[kind].append(f"'sha256-{_digest(text)}'")
        return f"<{kind}>{text}</{kind}>"

    html = _LINK.sub(inlined, (folder / "index.html").read_text("utf-8"))
    policy = (
        f"default-src 'none'; script-src {' '.join(allowed['script'])}; "
        f"style-src {' '.join(allowed['style'])}; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "ETag": f'"{_digest(html)}"',
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Page(html.encode(), headers)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def options(models: Mapping[str, Model], limits: Limits) -> dict[str, Any]:
    """What a request may ask for, as plain data; the first model is the default."""
    return {
        "version": __version__,
        "models": [_model(model, limits) for model in models.values()],
        "samplers": [
            {"name": one.name, "family": one.family.replace("_", " "), "about": one.doc}
            for one in sorted(map(samplers.get, samplers.names()), key=lambda one: one.family)
        ],
        "schedules": list(schedules.names()),
        "strength": STRENGTH,
        "limits": {
            "steps": min(limits.steps, MAX_STEPS),
            "count": min(limits.images, MAX_COUNT),
            "prompt": limits.prompt,
            "body": limits.body,
            "input_pixels": limits.input_pixels,
        },
    }


def _model(model: Model, limits: Limits) -> dict[str, Any]:
    manifest, sizes, defaults = model.manifest, model.bundle.sizes, model.manifest.defaults
    pixels = limits.pixels or sizes.maximum**2
    usual = list(usual_sizes(sizes, pixels))
    size = (sizes.width, sizes.height)
    if sizes.width * sizes.height > pixels and usual:
        size = (usual[0]["width"], usual[0]["height"])
    return {
        "name": model.name,
        "digest": model.digest,
        "sizes": {
            "width": size[0],
            "height": size[1],
            "minimum": sizes.minimum,
            "maximum": sizes.maximum,
            "multiple": sizes.multiple,
            "pixels": pixels,
            "usual": usual,
        },
        "presets": [] if defaults is None else presets(defaults, limits.steps),
        "previews": manifest.preview is not None or "preview_decoder" in manifest.networks,
        "from_pictures": "vae_encoder" in manifest.networks,
    }


def presets(defaults: Defaults, most: int) -> list[dict[str, Any]]:
    """Ways to draw: as the model's defaults say, in half of their steps, and in twice as many."""
    own = {
        "sampler": defaults.sampler,
        "schedule": defaults.schedule,
        "guidance": defaults.guidance,
    }
    steps = {
        "Quick": max(1, defaults.steps // 2),
        "Usual": defaults.steps,
        "Fine": 2 * defaults.steps,
    }
    return [{"name": name, "steps": min(n, most), **own} for name, n in steps.items()]


def usual_sizes(sizes: Sizes, most: int) -> Iterator[dict[str, Any]]:
    """Of the sizes of `most` pixels at most that the model draws, those nearest to the ratios that
    people ask for and to as many pixels as its own size has."""
    sides = range(sizes.minimum, sizes.maximum + 1, sizes.multiple)
    for across, down in RATIOS:

        def away(size: tuple[int, int], ratio: float = across / down) -> float:
            width, height = size
            pixels = width * height / (sizes.width * sizes.height)
            return abs(log(width / height / ratio)) + abs(log(pixels)) / 4

        found = min(((w, h) for w in sides for h in sides if w * h <= most), key=away, default=None)
        if found is not None:
            yield {"ratio": f"{across}:{down}", "width": found[0], "height": found[1]}
