"""sdfast as a service: many requests at once, side by side, in a process that survives its engines.

    async with Service(["demo"]) as service:
        job = await service.submit(Request("a small red circle on a blue background"))
        outcome = await job.result()

`sdfast.service.http` puts HTTP around it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .gate import Model
    from .jobs import Job, Outcome, Progress
    from .limits import Limits
    from .refusals import Refusal
    from .service import Service

__all__ = ["Job", "Limits", "Model", "Outcome", "Progress", "Refusal", "Service"]

# Imported on first use: the command line asks for Limits alone, where the extra `serve` may not be.
_HOMES = {
    "Job": "jobs",
    "Limits": "limits",
    "Model": "gate",
    "Outcome": "jobs",
    "Progress": "jobs",
    "Refusal": "refusals",
    "Service": "service",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
