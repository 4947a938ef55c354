"""What A1111's clients ask for before they draw: samplers, models and the like. Nothing here names
a folder of the machine: where A1111 tells a path there is a name."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request

from .... import samplers, schedules
from ..guard import owner
from .labels import AUTOMATIC, own_schedule, sampler_label, schedule_label
from .options import Chosen, title
from .translation import UPSCALERS

if TYPE_CHECKING:
    from ...service import Service

_NONE = (
    "sd-vae",
    "sd-modules",
    "hypernetworks",
    "face-restorers",
    "realesrgan-models",
    "prompt-styles",
    "script-info",
    "extensions",
)
"""Lists of what there is none of."""
_REFRESHED = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")
_LATENT = [name for name, resize in UPSCALERS.items() if resize == "latent"]
_OF_PICTURES = [name for name in UPSCALERS if name not in _LATENT]


def add(routes: APIRouter, service: Service, chosen: Chosen) -> None:
    """The routes."""

    @routes.get("/samplers")
    async def list_samplers() -> list[dict[str, Any]]:
        """The samplers, by A1111's names where they have one there."""
        return [
            {
                "name": sampler_label(name),
                "aliases": list(dict.fromkeys((name, *samplers.get(name).aliases))),
                "options": {"scheduler": own_schedule(name)},
            }
            for name in samplers.names()
        ]

    @routes.get("/schedulers")
    async def list_schedulers() -> list[dict[str, Any]]:
        """The schedules; the first leaves it to the sampler."""
        first = {"name": AUTOMATIC, "label": "Automatic", "aliases": []}
        others = (
            {"name": n, "label": schedule_label(n), "aliases": list(schedules.aliases(n))}
            for n in schedules.names()
        )
        return [{**one, "default_rho": -1, "need_inner_model": False} for one in (first, *others)]

    @routes.get("/sd-models")
    async def list_models() -> list[dict[str, Any]]:
        """The bundles that are served."""
        return [
            {
                "title": title(model),
                "model_name": model.name,
                "hash": model.digest[:10],
                "sha256": model.digest,
                "filename": model.name,
                "config": None,
            }
            for model in service.models.values()
        ]

    @routes.get("/loras")
    async def list_loras(request: Request) -> list[dict[str, Any]]:
        """The LoRA that prompts for the caller's model may name; none where they may not."""
        found = await asyncio.to_thread(service.loras, chosen.of(owner(request)))
        return [
            {"name": n, "alias": n, "path": n, "metadata": {}} for n in found if n.isprintable()
        ]

    @routes.get("/embeddings")
    async def list_embeddings() -> dict[str, Any]:
        """None by themselves: what a bundle has learnt is of its tokenizer."""
        return {"loaded": {}, "skipped": {}}

    @routes.get("/upscalers")
    async def list_upscalers() -> list[dict[str, Any]]:
        """Those for hr_upscaler that work on pictures."""
        files = {"model_name": None, "model_path": None, "model_url": None}
        return [{"name": name, **files, "scale": 4} for name in _OF_PICTURES]

    @routes.get("/latent-upscale-modes")
    async def list_latent_upscalers() -> list[dict[str, str]]:
        """Those that work on latents."""
        return [{"name": name} for name in _LATENT]

    @routes.get("/scripts")
    async def list_scripts() -> dict[str, list[str]]:
        """None: scripts are not run here."""
        return {"txt2img": [], "img2img": []}

    @routes.get("/memory")
    async def memory() -> dict[str, Any]:
        """Bytes of the machine's memory, and of it this process's."""
        page = os.sysconf("SC_PAGE_SIZE")
        own = int(Path("/proc/self/statm").read_text().split()[1]) * page
        free, total = (page * os.sysconf(f"SC_{kind}PHYS_PAGES") for kind in ("AV", ""))
        cuda = {"error": "it is told by GET /metrics"}
        return {"ram": {"free": free, "used": own, "total": total}, "cuda": cuda}

    @routes.get("/cmd-flags")
    async def flags() -> dict[str, Any]:
        """None that a client needs: A1111's tell of its folders."""
        return {}

    for name in _NONE:
        routes.add_api_route(f"/{name}", _nothing, methods=["GET"], name=name)
    for name in _REFRESHED:
        routes.add_api_route(f"/{name}", _as_it_is, methods=["POST"], name=name)


async def _nothing() -> list[Any]:
    """There are none."""
    return []


async def _as_it_is() -> None:
    """What is served is found when the service starts, and LoRA whenever they are named."""
