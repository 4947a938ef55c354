"""sdfast: a performance-optimized Stable Diffusion inference runtime.

pipe = sdfast.load("demo")
result = pipe("a red circle on a blue background", steps=20, seed=0)
result.images[0].save("circle.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import Cancelled, InvalidRequest, SdfastError
    from .pipeline import Pipeline, Result, load
    from .request import Request

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "InvalidRequest",
    "Pipeline",
    "Request",
    "Result",
    "SdfastError",
    "__version__",
    "load",
]

# Imported on first use: `import sdfast` alone loads no engine, picture or tokenizer library.
_HOMES = {
    "Cancelled": "errors",
    "InvalidRequest": "errors",
    "SdfastError": "errors",
    "Pipeline": "pipeline",
    "Result": "pipeline",
    "load": "pipeline",
    "Request": "request",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
