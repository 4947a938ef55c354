"""The loop that all three stages of the demo model's training share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

SEED = 0


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage learns. `rate` is the peak of a cosine with warm-up."""

    steps: int
    batch: int
    rate: float
    warmup: int = 200
    averaging: float = 0.0  # decay of the weights' moving average; 0: none


def fit(
    stage: str,
    plan: Plan,
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    work: Path,
    resume: bool,
    show: Callable[[nn.Module], Image.Image] | None = None,
) -> nn.Module:
    """Minimises `loss_of(step)` over the module's weights and returns the module, or its average.

    State is saved every 500 steps to `work/STAGE.pt`; `show` draws a grid of samples there too.
    """
    average = torch.optim.swa_utils.AveragedModel(
        module, avg_fn=lambda kept, new, n: kept + (new - kept) * (1 - _decay(plan, int(n)))
    )
    optimiser = torch.optim.AdamW(module.parameters(), lr=plan.rate, betas=(0.9, 0.99))
    losses: list[float] = []
    state_file = work / f"{stage}.pt"
    if resume and state_file.exists():
        state = torch.load(state_file, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        losses = state["losses"]
    module.train()
    started = time.monotonic()
    for step in range(len(losses), plan.steps):
        torch.manual_seed(SEED * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * _cosine(step, plan)
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        if plan.averaging:
            average.update_parameters(module)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            mean, seconds = np.mean(losses[-50:]), time.monotonic() - started
            print(f"{stage} {step + 1}/{plan.steps} loss {mean:.4f} {seconds:.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == plan.steps:
            kept = {
                "module": module.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "losses": losses,
            }
            torch.save(kept, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
            curve(losses).save(work / f"{stage}-loss.png")
            if show is not None:
                best = average.module if plan.averaging else module
                show(best.eval()).save(work / f"{stage}-samples.png")
                module.train()
    return (average.module if plan.averaging else module).eval()


def _decay(plan: Plan, updates: int) -> float:
    return min(plan.averaging, (1 + updates) / (10 + updates))


def _cosine(step: int, plan: Plan) -> float:
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) + 1e-3


def curve(losses: list[float], width: int = 800, height: int = 300) -> Image.Image:
    """The losses, smoothed, on a logarithmic axis."""
    window = max(1, len(losses) // 400)
    count = len(losses) // window
    smooth = np.log10(np.array(losses[: count * window]).reshape(count, window).mean(1))
    low, high = float(smooth.min()), float(smooth.max()) + 1e-9
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    x = np.linspace(10, width - 10, count)
    y = 20 + (height - 40) * (high - smooth) / (high - low + 1e-9)
    pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill="navy", width=2)
    pen.text((12, 4), f"{10**high:.4g}", fill="black")
    pen.text((12, height - 16), f"{10**low:.4g} at {len(losses)} steps", fill="black")
    return picture
