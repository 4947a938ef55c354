"""What a peer's process is told and what it reports. The standard library alone, Python 3.10 or
later: a peer's environment need not hold sdfast.

A process gets one Job as JSON in its only argument, draws, and prints a line of JSON at every
moment that is measured: {"event": NAME, "at": SECONDS, …}. `at` is the machine's monotonic clock,
which the process that started it reads too. The events, in order:

    imported  its libraries are there; versions
    exported  its own form of the checkpoint is made, where it needs one and finds none
    loaded    ready to draw; settings that it chose itself
    then for each picture: began; evaluated, after every step; drawn, with seconds by stage
    done      the peak of its resident memory, in bytes
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to draw, the same for every peer: DPM++ 2M on Karras' sigmas.

    prompts: picture k has prompt k, from the first again after the last, and seed k
    runs: pictures after the first, which has `first_steps`
    checkpoint: a folder in diffusers' layout; empty for a peer that reads none
    work: a folder for what is made once; picture: the file for the last picture
    options: the peer's own
    """

    prompts: tuple[str, ...]
    steps: int
    first_steps: int
    guidance: float
    width: int
    height: int
    count: int
    runs: int
    checkpoint: str
    work: str
    picture: str
    options: dict[str, Any]


Report = Callable[..., None]
"""report(event, **facts) prints one event, now."""

Draw = Callable[[str, int, int, Callable[[], None]], tuple[Any, dict[str, float]]]
"""draw(prompt, seed, steps, evaluated) → a Pillow picture and seconds by stage (text_encoder, unet,
vae_decoder); it calls `evaluated` after every step."""


def begin() -> tuple[Job, Report]:
    """The job of this process, and how it reports. From here on standard output is standard error
    for all others, whatever libraries print."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def report(event: str, **facts: Any) -> None:
        lines.write(json.dumps({"event": event, "at": time.monotonic(), **facts}) + "\n")

    return Job(**json.loads(sys.argv[1])), report


def draw_all(job: Job, report: Report, draw: Draw) -> None:
    """Draws the job's pictures and keeps the last."""
    for number in range(job.runs + 1):
        steps = job.steps if number else job.first_steps
        report("began")
        prompt = job.prompts[number % len(job.prompts)]
        picture, stages = draw(prompt, number, steps, lambda: report("evaluated"))
        report("drawn", stages=stages)
    report("done", peak_bytes=peak_bytes())
    picture.save(job.picture)


def versions(*packages: str) -> dict[str, str]:
    """Of Python and the packages."""
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}


def peak_bytes() -> int:
    """The largest resident memory that this process had."""
    try:
        # Linux hands ru_maxrss on from the process that forked this one; VmHWM is its own.
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
