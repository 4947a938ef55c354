"""diffusers' schedulers as the oracle of the samplers: a whole run of 20 steps on the demo U-Net,
both from one start, with one noise, each asking the network at the levels of its own latents.

diffusers rounds its tables and latents to float32, which the U-Net amplifies; here it runs in
float64, so that the comparison is of methods. The tolerances, relative to the largest latent, are
what its own precision costs on a smooth denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sdfast import samplers, schedules
from sdfast.export.demo.models import CHECKPOINT

STEPS = 20
SD = schedules.NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# A thousand timesteps a step apart, from 1: where diffusers' DDIM and PNDM start and end.
LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
Array = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(scope="module")
def denoised() -> Callable[[Array, float], Array]:
    """D(x, σ) of the demo U-Net in float64, of the empty prompt's context's zeros."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(CHECKPOINT / "unet").double().eval()
    context = torch.zeros(1, 77, unet.config.cross_attention_dim, dtype=torch.float64)

    @torch.no_grad()
    def model(x: Array, sigma: float) -> Array:
        latent = torch.from_numpy(x / np.sqrt(sigma**2 + 1))
        t = torch.tensor([SD.timestep(sigma)], dtype=torch.float64)
        return x - sigma * unet(latent, t, context).sample.numpy()

    return model


START = np.random.default_rng(0).standard_normal((1, 4, 16, 16))
DRAWS = np.random.default_rng(1).standard_normal((2 * STEPS, 1, 4, 16, 16))


def drawing() -> Iterator[Array]:
    return iter(DRAWS)


@dataclass(frozen=True)
class Case:
    """A scheduler and the sampler that it is.

    level: the σ that the scheduler's call number k has its network at
    sigmas: of our run
    variance_preserving: its latents are x / √(σ² + 1)
    step: what its step takes besides
    """

    scheduler: str
    sampler: str
    tolerance: float
    config: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    level: Callable[[Any, int, Any], float] = lambda s, k, t: float(s.sigmas[k])
    sigmas: Callable[[Any], Sequence[float]] = lambda s: list(dict.fromkeys(s.sigmas.tolist()))
    variance_preserving: bool = False
    step: dict[str, Any] = field(default_factory=dict)


def trained(scheduler: Any, k: int, t: Any) -> float:
    """Σ[t], of schedulers that know timesteps only."""
    return SD.sigmas[int(t)]


def listed(scheduler: Any, end: float) -> list[float]:
    """Σ[t] of the timesteps, each once, and the end."""
    return [*(SD.sigmas[int(t)] for t in dict.fromkeys(scheduler.timesteps.tolist())), end]


def stage(shift: int) -> Callable[[Any, int, Any], float]:
    """Levels of KDPM2's two stages: at odd calls the middle of the step."""
    return lambda s, k, t: float(s.sigmas_interpol[k - shift] if k % 2 else s.sigmas[k])


def geometric(scheduler: Any, k: int, t: Any) -> float:
    """Levels of DPMSolverSDE's two stages, whose middle is the geometric mean."""
    here = float(scheduler.sigmas[k])
    return (float(scheduler.sigmas[k - 1]) * here) ** 0.5 if k % 2 else here


class Double:
    """torch or numpy, but for its float32, which is its float64."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, "float64" if name == "float32" else name)


def prk_levels(scheduler: Any) -> list[float]:
    """PNDM's timesteps without those between steps: T − T/N + 1, …, 1, then Σ₀."""
    gap = 1000 // STEPS
    return [*(SD.sigmas[k * gap + 1] for k in reversed(range(STEPS))), SD.sigmas[0]]


MIDDLES = tuple(SD.sigmas[951 - 50 * i - 25] for i in range(3))
DPM = {"final_sigmas_type": "zero", "timestep_spacing": "linspace"}
VP = {"variance_preserving": True}
END_0 = lambda s: listed(s, SD.sigmas[0])  # noqa: E731

CASES = [
    Case("EulerDiscrete", "euler", 2e-7),
    Case("EulerAncestralDiscrete", "euler_ancestral", 3e-7),
    Case("HeunDiscrete", "heun", 2e-9),
    Case("LMSDiscrete", "lms", 1e-8),
    Case("KDPM2Discrete", "dpm_2", 3e-8, level=stage(0)),
    Case("KDPM2AncestralDiscrete", "dpm_2_ancestral", 1.5e-6, level=stage(1)),
    Case("DPMSolverSDE", "dpmpp_sde", 7e-7, level=geometric),
    Case("DPMSolverMultistep", "dpmpp_2m", 5e-7, DPM, **VP),
    Case(
        "DPMSolverMultistep",
        "dpmpp_2m_sde",
        2e-6,
        {**DPM, "algorithm_type": "sde-dpmsolver++"},
        **VP,
    ),
    Case(
        "DPMSolverMultistep",
        "dpmpp_2m_sde",
        2e-6,
        {**DPM, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        {"solver_type": "heun"},
        **VP,
    ),
    Case(
        "DPMSolverMultistep",
        "dpmpp_3m_sde",
        3e-6,
        {**DPM, "solver_order": 3, "solver_type": "heun"},
        {"eta": 0.0},
        **VP,
    ),
    Case(
        "UniPCMultistep",
        "uni_pc",
        5e-7,
        {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        **VP,
    ),
    Case(
        "UniPCMultistep",
        "uni_pc_bh2",
        5e-7,
        {"solver_order": 3, "solver_type": "bh2", "final_sigmas_type": "sigma_min"},
        **VP,
    ),
    Case(
        "PNDM", "plms", 1e-6, {**LEADING, "skip_prk_steps": True}, level=trained, sigmas=END_0, **VP
    ),
    Case(
        "PNDM",
        "pndm",
        1e-6,
        {**LEADING, "skip_prk_steps": False},
        {"middles": MIDDLES},
        trained,
        prk_levels,
        **VP,
    ),
    Case(
        "DDIM", "ddim", 1e-6, {**LEADING, "clip_sample": False}, level=trained, sigmas=END_0, **VP
    ),
    Case(
        "DDIM",
        "ddim",
        1e-6,
        {**LEADING, "clip_sample": False},
        {"eta": 0.5},
        trained,
        END_0,
        step={"eta": 0.5},
        **VP,
    ),
    Case(
        "DDPM",
        "ddpm",
        1e-6,
        {"clip_sample": False, "timestep_spacing": "leading", "steps_offset": 1},
        level=trained,
        sigmas=lambda s: listed(s, 0.0),
        **VP,
    ),
    Case(
        "LCM",
        "lcm",
        7e-7,
        {"clip_sample": False},
        level=trained,
        sigmas=lambda s: listed(s, 0.0),
        **VP,
    ),
]


def consistent(model: Any) -> Callable[[Array, float], Array]:
    """The denoised of a latent consistency model over D (diffusers' LCMScheduler): c_out D + c_skip
    x / √(σ² + 1), with τ = 10 t, c_skip = ¼ / (τ² + ¼), c_out = τ / √(τ² + ¼)."""

    def denoised(x: Array, sigma: float) -> Array:
        tau = 10 * round(SD.timestep(sigma))
        skip, out = 0.25 / (tau**2 + 0.25), tau / np.sqrt(tau**2 + 0.25)
        return out * model(x, sigma) + skip * x / np.sqrt(sigma**2 + 1)

    return denoised


def theirs(case: Case, scheduler: Any, model: Any, drawn: Any) -> Array:
    scheduler.alphas_cumprod = 1 / (1 + torch.tensor(SD.sigmas, dtype=torch.float64) ** 2)
    scheduler.alphas = scheduler.alphas_cumprod / torch.cat(
        [torch.ones(1), scheduler.alphas_cumprod[:-1]]
    )
    scheduler.betas = 1 - scheduler.alphas
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(STEPS)
    scheduler.noise_sampler = drawn  # DPMSolverSDE's
    x, first = START, None
    for k, t in enumerate(scheduler.timesteps):
        sigma = case.level(scheduler, k, t)
        root = np.sqrt(sigma**2 + 1) if case.variance_preserving else 1.0
        if first is None:
            first, x = sigma, START * sigma / root
        scheduler.scale_model_input(torch.from_numpy(x), t)
        eps = (x * root - model(x * root, sigma)) / sigma
        out = scheduler.step(torch.from_numpy(eps), t, torch.from_numpy(x), **case.step).prev_sample
        x = out.double().numpy()
    return x


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.sampler}-{c.scheduler}")
def test_a_run_ends_where_diffusers_ends(
    case: Case, denoised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = getattr(diffusers, case.scheduler + "Scheduler")(**BETAS, **case.config)
    draws = drawing()
    module = __import__(type(scheduler).__module__, fromlist=["x"])
    drawn = lambda *a, **k: torch.from_numpy(next(draws))  # noqa: E731
    monkeypatch.setattr(module, "torch", Double(torch))
    monkeypatch.setattr(module, "np", Double(np))
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", drawn)
    expected = theirs(case, scheduler, denoised, drawn)
    sigmas = case.sigmas(scheduler)
    own, model = drawing(), consistent(denoised) if case.sampler == "lcm" else denoised
    sampler = samplers.get(case.sampler)
    got = sampler.sample(
        model, START * sigmas[0], sigmas, lambda a, b: next(own), **case.parameters
    )
    if case.variance_preserving:
        expected = expected * np.sqrt(sigmas[-1] ** 2 + 1)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error <= case.tolerance
