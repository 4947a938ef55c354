"""diffusers' StableDiffusionPipeline. options: dtype, a torch dtype's name; compiled, whether
torch.compile takes its networks, on a CPU with frozen weights, on a GPU with kernels chosen by
timing and in CUDA graphs; device, "cpu" or "cuda"."""

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
    device = job.options["device"]
    if device == "cuda":
        pipe.to(device)
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if job.options["compiled"]:
        import torch._inductor.config

        torch._inductor.config.freezing = device == "cpu"
        mode = "max-autotune" if device == "cuda" else "default"
        pipe.text_encoder = torch.compile(pipe.text_encoder)
        pipe.unet = torch.compile(pipe.unet, mode=mode)
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode=mode)
    wait = torch.cuda.synchronize if device == "cuda" else None
    draw = drawing(pipe, job, wait)
    report("loaded")
    draw_all(job, report, draw)


if __name__ == "__main__":
    main()
