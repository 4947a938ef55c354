from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from sdfast import _core
from sdfast.guidance import Guidance
from sdfast.tensors import Tensor


@pytest.mark.parametrize(
    ("guidance", "sigmas"),
    [
        (Guidance(7.0), [0.0, 0.3, 1.0, 5.0, 100.0]),
        (Guidance(0.0), [0.0, 0.3, 1.0, 5.0, 100.0]),
        (Guidance(7.0, interval=(0.3, 5.0)), [1.0, 5.0]),
        (Guidance(7.0, interval=(0.0, 0.3)), [0.3]),
        (Guidance(7.0, interval=(200.0, 300.0)), []),
        (Guidance(1.0), []),
        (Guidance(1.0, rescale=0.7, interval=(0.3, 5.0)), []),
    ],
)
def test_guidance_acts_above_low_up_to_high_and_never_at_scale_1(
    guidance: Guidance, sigmas: list[float]
) -> None:
    assert [s for s in (0.0, 0.3, 1.0, 5.0, 100.0) if guidance.acts(s)] == sigmas


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescale_of_a_v_model_is_that_of_diffusers(phi: float) -> None:
    # In the limit of large σ, D = −v: what is left is the rescaled network output itself.
    sigma, scale = 1e12, 7.5
    out = np.random.default_rng(0).standard_normal((4, 4, 8, 8), np.float32)
    out[1] += 3 * out[3]  # the second image's halves differ more than the first's
    unguided, guided = torch.from_numpy(out).double().split(2)
    mixed = unguided + scale * (guided - unguided)
    expected = rescale_noise_cfg(mixed, guided, guidance_rescale=phi).numpy()
    denoised, x = np.empty_like(out[:2]), np.zeros_like(out[:2])
    tensors = map(Tensor.from_dlpack, (denoised, out, x))
    _core.guide(*tensors, sigma, scale, "v_prediction", phi)
    assert np.abs(-denoised - expected).max() <= 1e-6 * 100  # float32, of values up to 100
