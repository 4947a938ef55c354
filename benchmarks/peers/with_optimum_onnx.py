"""optimum-onnx's ORTStableDiffusionPipeline, with its defaults."""

from __future__ import annotations

from diffusers_like import drawing, exported
from protocol import begin, draw_all, versions


def main() -> None:
    job, report = begin()
    from optimum.onnxruntime import ORTStableDiffusionPipeline as Pipeline

    packages = ("optimum-onnx", "optimum", "onnxruntime", "diffusers", "transformers", "torch")
    report("imported", versions=versions(*packages))
    folder, now = exported(
        job, "optimum-onnx", lambda checkpoint: Pipeline.from_pretrained(checkpoint, export=True)
    )
    if now:
        report("exported")
    draw = drawing(Pipeline.from_pretrained(folder, safety_checker=None), job)
    report("loaded")
    draw_all(job, report, draw)


if __name__ == "__main__":
    main()
