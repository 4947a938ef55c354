"""How a job ends, by what the worker says of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .. import errors
from ..errors import EngineError, SdfastError
from ..provenance import Origin, Provenance
from .frames import Frame
from .jobs import Job, Outcome
from .refusals import BadOutput, Broken, OutOfMemory

_LOG = logging.getLogger("sdfast.service")


def outcome(job: Job, frame: Frame, origin: Origin) -> Outcome | Exception:
    """That of a job which was drawn, or failed. origin: of the model's pictures."""
    said, request = frame.said, job.request
    if said["said"] == "failed":
        if said["kind"] == "OutOfMemory":
            _LOG.error("job %s: %s", job.id, said["message"])
            return OutOfMemory(
                f"{request.count} picture(s) of {request.width}×{request.height} could not be "
                "drawn for want of memory: ask for fewer or smaller ones"
            )
        if "trace" in said:
            _LOG.error("job %s: %s", job.id, said["trace"])
        return raised(said)
    if said["blank"]:
        return BadOutput("what was drawn is of one colour: ask with another seed or prompt")
    timings = {**said["timings"], "queue": job.sent - job.begun}
    made = Provenance(origin, job.inputs, len(frame.pictures))
    return Outcome(frame.pictures, tuple(said["seeds"]), request, timings, job.model, made)


def raised(said: Mapping[str, Any]) -> SdfastError:
    """What the worker raised. Errors that are no mistake of a request say nothing of themselves."""
    kind = getattr(errors, said["kind"], None)
    if (
        isinstance(kind, type)
        and issubclass(kind, SdfastError)
        and not issubclass(kind, EngineError)
    ):
        return kind(said["message"])
    return Broken("the request could not be drawn: the service's log says why")
