"""Golden pictures: whether what a worker draws is what it should be.

For each model there is a request that brings the same picture every time. A worker first draws it
as small as it can be, by which the memory of larger ones is foretold, then at its own size, twice
where it is the service's first: that compiles the networks, and the second tells what a picture
takes. Later it is asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from PIL import Image, ImageChops

from .frames import Frame

_LOG = logging.getLogger("sdfast.service")
_SMALL, _WHOLE = "small:", "golden:"  # begin their names among jobs
_NEAR = 2  # levels by which one may differ: other numbers of rows round otherwise


class Verdict(Enum):
    """What is known when one came."""

    SMALL = auto()  # a small one was drawn
    FIRST = auto()  # there was none to compare it with
    RIGHT = auto()  # it is what it should be
    WRONG = auto()  # it is not
    NONE = auto()  # not even a small one can be drawn


class Golden:
    """Those of one service. models: by name."""

    def __init__(self, models: Iterable[str]) -> None:
        self._models = tuple(models)
        self._known: dict[str, Image.Image] = {}
        self._awaited: set[str] = set()

    @property
    def known(self) -> bool:
        """Whether a worker has drawn before."""
        return bool(self._known)

    @property
    def awaited(self) -> bool:
        """Whether some are to come yet."""
        return bool(self._awaited)

    def asked(self, small: bool = False) -> list[tuple[str, Frame]]:
        """What the worker is to be told, by model, where it does not draw it already."""
        found = list[tuple[str, Frame]]()
        for model in self._models:
            if model not in self._awaited:
                said = {"do": "golden", "model": model, "small": small}
                said["id"] = (_SMALL if small else _WHOLE) + model
                found.append((model, Frame({**said, "priority": 1, "seconds": 0.0})))
                self._awaited.add(model)
        return found

    def lost(self) -> None:
        """The worker is gone, and draws none of them."""
        self._awaited.clear()

    def heed(self, model: str, frame: Frame) -> Verdict:
        """One came, or could not be drawn."""
        self._awaited.discard(model)
        failed = frame.said["said"] == "failed"
        if is_small(frame.said["id"]):
            if failed:
                _LOG.error("%s: %s", model, frame.said["message"])
                return Verdict.NONE
            return Verdict.SMALL
        if failed or frame.said["blank"]:
            _LOG.error("%s: %s", model, frame.said.get("message", "its golden picture is blank"))
            return Verdict.WRONG
        (drawn,) = frame.pictures
        first = model not in self._known
        if _distance(self._known.setdefault(model, drawn), drawn) > _NEAR:
            _LOG.error("%s: its golden picture is another one", model)
            return Verdict.WRONG
        return Verdict.FIRST if first else Verdict.RIGHT


def model_of(job: str) -> str | None:
    """The model whose golden picture a job of that name is; None for other jobs."""
    for begins in (_SMALL, _WHOLE):
        if job.startswith(begins):
            return job.removeprefix(begins)
    return None


def is_small(job: str) -> bool:
    """Whether it is a small one, whose steps compile."""
    return job.startswith(_SMALL)


def _distance(one: Image.Image, other: Image.Image) -> int:
    if one.size != other.size:
        return 255
    extrema: Any = ImageChops.difference(one, other).getextrema()
    return max(int(high) for _, high in extrema)
