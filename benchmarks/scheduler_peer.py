"""What a step costs besides the network: sdfast's loop beside diffusers' schedulers.

    python benchmarks/scheduler_peer.py [--runs 31] [--json FILE]

20 steps on one latent of 1×4×64×64 (a picture of 512×512) without guidance, in turn, by the clock:
diffusers' scale_model_input and step with a network's output that lies ready, sdfast's whole loop
with a network that does nothing. Both draw noise of one kind from one generator, torch's on the
CPU; where sdfast's default is another (philox, and brownian for some samplers), its time with that
stands beside. Quote the ratios: a step of sdfast over a step of diffusers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import diffusers
import numpy as np
import torch
from machine import described

from sdfast import noise, program, samplers, schedules
from sdfast.devices.cpu import Denoiser, Loop, start
from sdfast.guidance import Guidance
from sdfast.tensors import Tensor

STEPS = 20
SHAPE = (1, 4, 64, 64)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD = schedules.NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)
SDE = {"algorithm_type": "sde-dpmsolver++"}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscrete", {}),
    "euler_ancestral": ("EulerAncestralDiscrete", {}),
    "ddim": ("DDIM", {"clip_sample": False}),
    "ddpm": ("DDPM", {"clip_sample": False}),
    "plms": ("PNDM", {"skip_prk_steps": True}),
    "pndm": ("PNDM", {"skip_prk_steps": False}),
    "ipndm": ("IPNDM", {}),
    "lms": ("LMSDiscrete", {}),
    "deis": ("DEISMultistep", {}),
    "heun": ("HeunDiscrete", {}),
    "dpm_2": ("KDPM2Discrete", {}),
    "dpm_2_ancestral": ("KDPM2AncestralDiscrete", {}),
    "dpmpp_2m": ("DPMSolverMultistep", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistep", SDE),
    "dpmpp_3m_sde": ("DPMSolverMultistep", {**SDE, "solver_order": 3}),
    "dpmpp_sde": ("DPMSolverSDE", {}),
    "uni_pc": ("UniPCMultistep", {"solver_order": 3, "solver_type": "bh1"}),
    "uni_pc_bh2": ("UniPCMultistep", {"solver_order": 3, "solver_type": "bh2"}),
    "lcm": ("LCM", {}),
}
# DPMSolverSDE's noise is a Brownian path, as ours.
BROWNIAN_THERE = ("dpmpp_sde",)


def theirs(name: str) -> Callable[[], float]:
    """A run of diffusers' scheduler: seconds a step."""
    kind, config = PEERS[name]
    betas = {} if kind == "IPNDM" else BETAS
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**betas, **config)
    generator = torch.Generator().manual_seed(0)
    takes = "generator" in scheduler.step.__code__.co_varnames
    drawn = {"generator": generator} if takes and name not in BROWNIAN_THERE else {}
    output = torch.randn(SHAPE, generator=generator)

    def run() -> float:
        scheduler.set_timesteps(STEPS)
        x = torch.randn(SHAPE, generator=generator)
        started = perf_counter()
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x, **drawn).prev_sample
        return (perf_counter() - started) / STEPS

    return run


class Ready:
    """A network whose output lies ready."""

    def bind(self, tensors: Mapping[str, Tensor], /) -> None: ...
    def run(self) -> None: ...


def ours(name: str, rng: str, kind: str) -> Callable[[], float]:
    """A run of sdfast's loop: seconds a step."""
    shapes = {"latent": SHAPE, "timestep": SHAPE[:1], "noise": SHAPE}
    tensors = {tensor: Tensor.empty(shape, "f32") for tensor, shape in shapes.items()}
    np.asarray(tensors["noise"])[:] = np.random.default_rng(0).standard_normal(SHAPE)
    sigmas = schedules.sigmas("karras", STEPS, SD)
    loop = Loop(program.trace(name, sigmas), Denoiser(Ready(), tensors, 1, SD, "epsilon"), SHAPE)

    def run() -> float:
        first, draw = noise.streams(kind, rng, [0])
        start(loop.x, sigmas[0], first)
        started = perf_counter()
        loop.run(Guidance(1.0), draw)
        return (perf_counter() - started) / STEPS

    return run


def compared(name: str, runs: int) -> dict[str, Any]:
    """Medians in microseconds a step."""
    sampler = samplers.get(name)
    like = "brownian" if name in BROWNIAN_THERE else "gaussian"
    timed = {
        "diffusers": theirs(name),
        "sdfast": ours(name, "torch", like),
        "sdfast_default": ours(name, "philox", sampler.noise),
    }
    few = max(runs // 5, 3) if name in ("lms", *BROWNIAN_THERE) else runs  # milliseconds a step
    seconds: dict[str, list[float]] = {who: [] for who in timed}
    for _ in range(few):
        for who, run in timed.items():
            seconds[who].append(run())
    found = {who: round(statistics.median(s) * 1e6, 1) for who, s in seconds.items()}
    return {
        "peer": PEERS[name][0],
        "noise": like if sampler.stochastic else "none",
        "microseconds": found,
        "ratio": round(found["sdfast"] / found["diffusers"], 3),
        "ratio_default": round(found["sdfast_default"] / found["diffusers"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = {}
    for name in PEERS:
        rows[name] = compared(name, given.runs)
        print(name, rows[name]["microseconds"], rows[name]["ratio"], rows[name]["ratio_default"])
    command = "python benchmarks/scheduler_peer.py"
    found = {**described(command, "torch", "diffusers"), "runs": given.runs, "samplers": rows}
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
