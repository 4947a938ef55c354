"""diffusers' StableDiffusionPipeline. options: dtype, a torch dtype's name; compiled, whether
torch.compile takes its networks, with frozen weights."""

from __future__ import annotations

from pathlib import Path

from diffusers_like import drawing, readable
from protocol import begin, draw_all, versions


def main() -> None:
    job, report = begin()
    import torch
    from diffusers import StableDiffusionPipeline

    report("imported", versions=versions("torch", "diffusers", "transformers"))
    pipe = StableDiffusionPipeline.from_pretrained(
        readable(Path(job.checkpoint), Path(job.work)),
        torch_dtype=getattr(torch, job.options["dtype"]),
        safety_checker=None,
    )
    if job.options["compiled"]:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        pipe.text_encoder = torch.compile(pipe.text_encoder)
        pipe.unet = torch.compile(pipe.unet)
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    draw = drawing(pipe, job)
    report("loaded")
    draw_all(job, report, draw)


if __name__ == "__main__":
    main()
