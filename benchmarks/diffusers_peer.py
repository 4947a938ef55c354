"""sdfast beside diffusers on the demo checkpoint: time from prompt to picture, and whether the
pictures agree.

    python benchmarks/diffusers_peer.py [--runs 15] [--json FILE]

Both in one process, in turn, so that a machine whose speed drifts treats them alike, and each after
a pause, so that the other's threads have stopped waiting for work in a loop. diffusers
runs as its users run it: StableDiffusionPipeline, float32, eager, DPMSolverMultistepScheduler with
Karras sigmas, 20 steps, guidance 4; sdfast with its defaults, the same steps, sampler, guidance,
seed and noise. Quote the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from machine import described

import sdfast
from sdfast.export.demo.models import CHECKPOINT

PROMPT = "a small red circle on a blue background"
STEPS, GUIDANCE = 20, 4.0
PAUSE_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    theirs = StableDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(
        theirs.scheduler.config, use_karras_sigmas=True
    )
    ours = sdfast.load("demo", "onnxruntime")

    def diffusers(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return theirs(
            PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator
        ).images[0]

    def own(seed: int) -> Any:
        return ours(PROMPT, steps=STEPS, guidance=GUIDANCE, seed=seed, rng="torch").images[0]

    seconds: dict[str, list[float]] = {"diffusers": [], "sdfast": []}
    apart = []
    for seed in range(-2, given.runs):  # two to warm up
        made = {}
        for name, draw in (("diffusers", diffusers), ("sdfast", own)):
            sleep(PAUSE_SECONDS)
            started = perf_counter()
            made[name] = np.asarray(draw(abs(seed))).astype(int)
            if seed >= 0:
                seconds[name].append(perf_counter() - started)
        apart.append(int(np.abs(made["diffusers"] - made["sdfast"]).max()))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    found = {
        **described("python benchmarks/diffusers_peer.py", "torch", "diffusers", "onnxruntime"),
        "runs": given.runs,
        "median_seconds": medians,
        "ratio": medians["sdfast"] / medians["diffusers"],
        "levels_apart": apart,
    }
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
