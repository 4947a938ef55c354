"""What the denoising loop does besides calling the engine: time, Python calls and memory.

    python benchmarks/loop.py [--steps 20] [--runs 15] [--json FILE]

The engine's share is timed around its `run`; the rest of the loop is the difference to the whole.
A separate run under the profiler lists every function that the loop calls.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import tracemalloc
from pathlib import Path
from time import perf_counter

from machine import described

import sdfast
from sdfast import noise
from sdfast.backends import Engine
from sdfast.guidance import Guidance
from sdfast.request import Request, resolve


class Timed:
    """An engine that adds up the seconds of its runs."""

    def __init__(self, inner: Engine) -> None:
        self.inner, self.seconds = inner, 0.0
        self.bind = inner.bind

    def run(self, stream: int = 0) -> None:
        started = perf_counter()
        self.inner.run(stream)
        self.seconds += perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    pipe = sdfast.load("demo")
    engine = Timed(pipe._opened["unet"])
    pipe._opened._engines["unet"] = engine  # what the pipeline's next plans are made with

    def loop(steps: int) -> object:
        request = resolve(Request("a red star", steps=steps, seed=0), pipe.bundle)
        pipe(request.as_request())  # traces, allocates and warms up
        variant = pipe._variants.plain
        guidance = Guidance(request.guidance)
        with (
            variant.conditions() as conditions,
            variant.plans.lend(request, guidance, 1, conditions) as plan,
        ):
            return plan.loop

    tested = loop(given.steps)
    outside, whole = [], []
    for _ in range(given.runs):
        engine.seconds = 0.0
        _, draw = noise.streams("gaussian", "philox", [0])
        started = perf_counter()
        tested.run(Guidance(4.0), draw)  # type: ignore[attr-defined]
        whole.append(perf_counter() - started)
        outside.append(whole[-1] - engine.seconds)

    profile = cProfile.Profile()
    profile.runcall(tested.run, Guidance(4.0), draw)  # type: ignore[attr-defined]
    calls = {
        f"{Path(file).name}:{name}": stat[0]
        for (file, _, name), stat in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    }

    found = {
        **described("python benchmarks/loop.py", "onnxruntime"),
        "steps": given.steps,
        "median_seconds": statistics.median(whole),
        "outside_engine_share": statistics.median(outside) / statistics.median(whole),
        "calls": calls,
        "numpy_calls": sum(count for name, count in calls.items() if "numpy" in name.lower()),
        "peak_bytes_by_steps": {
            steps: peak_bytes(loop(steps)) for steps in (10, given.steps, 5 * given.steps)
        },
    }
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def peak_bytes(loop: object) -> int:
    """What Python allocates at most during a run, beyond what was there."""
    _, draw = noise.streams("gaussian", "philox", [0])
    tracemalloc.start()
    loop.run(Guidance(4.0), draw)  # type: ignore[attr-defined]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    main()
