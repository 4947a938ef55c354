"""optimum-intel's OVStableDiffusionPipeline, with its defaults."""

from __future__ import annotations

from diffusers_like import drawing, exported
from protocol import begin, draw_all, versions


def main() -> None:
    job, report = begin()
    from optimum.intel import OVStableDiffusionPipeline as Pipeline

    packages = ("optimum-intel", "optimum", "openvino", "diffusers", "transformers", "torch")
    report("imported", versions=versions(*packages))
    folder, now = exported(
        job,
        "optimum-openvino",
        lambda checkpoint: Pipeline.from_pretrained(checkpoint, export=True, compile=False),
    )
    if now:
        report("exported")
    pipe = Pipeline.from_pretrained(folder, safety_checker=None)
    precision = pipe.unet.request.get_property("INFERENCE_PRECISION_HINT").to_string()
    draw = drawing(pipe, job)
    report("loaded", settings={"precision": precision})
    draw_all(job, report, draw)


if __name__ == "__main__":
    main()
