"""sdfast as a peer. options: load, what `sdfast.load` takes; request, what Request takes besides
the job's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol import begin, draw_all, versions


def main() -> None:
    job, report = begin()
    import sdfast

    report("imported", versions=versions("sdfast"))
    pipe = sdfast.load(**job.options["load"])
    on_gpu = pipe.device != "cpu"

    def draw(
        prompt: str, seed: int, steps: int, evaluated: Callable[[], None]
    ) -> tuple[Any, dict[str, float]]:
        result = pipe(
            prompt,
            seed=seed,
            steps=steps,
            sampler="dpmpp_2m",
            schedule="karras",
            guidance=job.guidance,
            width=job.width,
            height=job.height,
            count=job.count,
            rng="torch",  # the noise that the others draw
            callback=None if on_gpu else lambda done, of: evaluated(),
            **job.options["request"],
        )
        return result.images[0], {k: v for k, v in result.timings.items() if k != "total"}

    if on_gpu:  # the first run is the one that a graph is captured after
        draw(job.prompts[0], 0, job.steps, lambda: None)
    settings = {"backend": pipe.backend, "precision": pipe.precision, "device": pipe.device}
    report("loaded", settings=settings, versions=versions(pipe.backend))
    draw_all(job, report, draw)


if __name__ == "__main__":
    main()
