"""What a picture costs besides the networks on a GPU, by the form of its graphs.

    python benchmarks/gpu.py --bundle B [--steps 20] [--runs 10] [--pictures 1000] [--json FILE]

For each form (launches one by one, a graph a step, a graph for the whole program): seconds a
picture, the host's time to enqueue a step, the share of the time in which kernels run, the GPU's
memory, and seconds to capture. Then as many pictures as asked for in the last form, with the memory
before and after. Kernels are counted by CUPTI through PyTorch's profiler, where it is installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

from machine import described

import sdfast
from sdfast.devices.runs import FORMS, Plan
from sdfast.pipeline import Pipeline

PROMPT = "a red circle on a blue background"


class Watch:
    """Times what the host does of a picture from its first enqueued work to the wait for its end:
    what is left after that is the GPU's alone."""

    def __init__(self, gpu: Any) -> None:
        self.seconds: list[float] = []
        wait, draw = gpu.synchronize, Plan.draw
        began = 0.0

        def waited() -> None:
            nonlocal began
            if began:
                self.seconds.append(perf_counter() - began)
                began = 0.0
            wait()

        def drawn(plan: Plan, *given: Any, **named: Any) -> Any:
            nonlocal began
            began = perf_counter()
            return draw(plan, *given, **named)

        gpu.synchronize = waited
        Plan.draw = drawn  # type: ignore[method-assign]


def busy(kernels: Iterable[tuple[float, float]]) -> float:
    """The share of the time from the first beginning to the last end in which one runs at least.
    kernels: begin and end of each"""
    spans = sorted(kernels)
    if not spans:
        return 0.0
    covered, until = 0.0, spans[0][0]
    for begin, end in spans:
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered / (until - spans[0][0])


def kernels(draw: Callable[[], object]) -> list[tuple[float, float]]:
    """When each kernel of a picture began and ended, in microseconds. Empty without PyTorch."""
    try:
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return []
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        draw()
    return [
        (event.time_range.start, event.time_range.end)
        for event in seen.events() or []
        if str(event.device_type).endswith("CUDA") and not event.name.startswith("Mem")
    ]


def measured(pipe: Pipeline, request: dict[str, Any], runs: int) -> dict[str, Any]:
    """One form's figures."""
    gpu = pipe._opened.options.gpu
    assert gpu is not None
    watch, before, began = Watch(gpu), gpu.free(), perf_counter()
    for _ in range(2):  # from the host, which is when graphs are captured, and as graphs
        pipe(PROMPT, **request)
    ready = perf_counter() - began
    watch.seconds.clear()
    results = [pipe(PROMPT, **request) for _ in range(runs)]
    return {
        "seconds": round(statistics.median(r.timings["total"] for r in results), 5),
        "host_us_a_step": round(1e6 * statistics.median(watch.seconds) / request["steps"], 2),
        "busy": round(busy(kernels(lambda: pipe(PROMPT, **request))), 4),
        "bytes": before - gpu.free(),
        "ready_seconds": round(ready, 2),
        "form": results[-1].form,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    request = {"steps": given.steps, "seed": 0}
    found: dict[str, Any] = {}
    for form in reversed(FORMS):
        pipe = sdfast.load(given.bundle, given.backend, "cuda", graphs=form)
        found[form] = measured(pipe, request, given.runs)
        print(f"{form:8}", found[form], flush=True)
        gpu = pipe._opened.options.gpu
        assert gpu is not None
        if form == FORMS[0] and given.pictures:
            before = gpu.free()
            for seed in range(given.pictures):
                pipe(PROMPT, steps=given.steps, seed=seed)
            found["growth_bytes"] = before - gpu.free()
            print(f"{given.pictures} pictures took {found['growth_bytes']} bytes more", flush=True)
        pipe.close()
    command = f"python benchmarks/gpu.py --bundle {Path(given.bundle).name} --steps {given.steps}"
    record = {**described(command), "backend": pipe.backend, "precision": pipe.precision}
    if given.json:
        given.json.write_text(json.dumps({**record, "forms": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
