"""The page at `/`.

The page is page/index.html, in which every stylesheet and script that it links to is put in place
of the link when the service starts: one answer is all that a browser needs, and the page runs
nothing but what it came with. Each of them is allowed by its digest (Content-Security-Policy), and
the page speaks to no other host.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

if TYPE_CHECKING:
    from ..service import Service
    from .settings import Settings

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
    """`/`."""
    routes = APIRouter()
    page = assembled()

    @routes.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        if request.headers.get("if-none-match") == page.headers["ETag"]:
            return Response(status_code=304, headers=dict(page.headers))
        return Response(page.body, media_type="text/html", headers=dict(page.headers))

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
