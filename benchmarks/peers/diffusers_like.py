"""What diffusers' pipeline and those made after it have in common: how they draw, and which
checkpoints they read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from protocol import Draw, Job


def drawing(pipe: Any, job: Job, wait: Callable[[], None] | None = None) -> Draw:
    """How a StableDiffusionPipeline draws the job, its stages timed around its own calls.

    wait: until the device is done, which ends a stage
    """
    import torch
    from diffusers import DPMSolverMultistepScheduler

    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, use_karras_sigmas=True
    )
    spent: dict[str, tuple[float, float]] = {}  # began, ended

    def timed(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*values: Any, **named: Any) -> Any:
            began = perf_counter()
            found = call(*values, **named)
            if wait is not None:
                wait()
            spent[stage] = (began, perf_counter())
            return found

        return wrapped

    pipe.encode_prompt = timed("text_encoder", pipe.encode_prompt)
    pipe.vae.decode = timed("vae_decoder", pipe.vae.decode)

    def draw(
        prompt: str, seed: int, steps: int, evaluated: Callable[[], None]
    ) -> tuple[Any, dict[str, float]]:
        ended = 0.0

        def stepped(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal ended
            ended = perf_counter()
            evaluated()
            return tensors

        picture = pipe(
            prompt,
            num_inference_steps=steps,
            guidance_scale=job.guidance,
            width=job.width,
            height=job.height,
            num_images_per_prompt=job.count,
            generator=[torch.Generator().manual_seed(seed + k) for k in range(job.count)],
            callback_on_step_end=stepped,
        ).images[0]
        stages = {stage: end - begin for stage, (begin, end) in spent.items()}
        if wait is not None:  # steps are enqueued ahead of the device
            ended = spent["vae_decoder"][0]
        return picture, {**stages, "unet": ended - spent["text_encoder"][1]}

    return draw


def readable(checkpoint: Path, work: Path) -> Path:
    """The checkpoint for the transformers that is installed: from 5.6 on it writes the weights of
    CLIPTextModel without the prefix "text_model.", which older ones take for missing. For those a
    folder of links beside a text encoder of their form."""
    import transformers
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "text_encoder" / "model.safetensors")
    old = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 6)
    if not old or any(name.startswith("text_model.") for name in weights):
        return checkpoint
    folder = work / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint / "text_encoder", folder / "text_encoder")
    for part in checkpoint.iterdir():
        if part.name != "text_encoder":
            (folder / part.name).symlink_to(part.resolve())
    prefixed = {f"text_model.{name}": tensor for name, tensor in weights.items()}
    save_file(prefixed, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    return folder


def exported(job: Job, name: str, make: Callable[[str], Any]) -> tuple[Path, bool]:
    """The folder of a form of the checkpoint that is made once, `make(checkpoint)` being what saves
    itself by `save_pretrained`; and whether it was made now."""
    folder = Path(job.work) / name
    if folder.is_dir():
        return folder, False
    work = Path(job.work)
    unfinished = work / f"{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    make(str(readable(Path(job.checkpoint), work))).save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder, True
