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
            callback=lambda done, of: evaluated(),
            **job.options["request"],
        )
        return result.images[0], {k: v for k, v in result.timings.items() if k != "total"}

    settings = {"backend": pipe.backend, "precision": pipe.precision}
    report("loaded", settings=settings, versions=versions(pipe.backend))
    draw_all(job, report, draw)


if __name__ == "__main__":
    main()
