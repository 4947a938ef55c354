"""scheduler_config.json as the families' models were published with; single files carry none."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_BETAS: Config = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "prediction_type": "epsilon",
}
SD1: Config = _BETAS | {
    "_class_name": "PNDMScheduler",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SD2: Config = _BETAS | {
    "_class_name": "DDIMScheduler",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SDXL: Config = _BETAS | {
    "_class_name": "EulerDiscreteScheduler",
    "clip_sample": False,
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
SD_TURBO: Config = SDXL | {"timestep_spacing": "trailing"}
SDXL_TURBO: Config = SD_TURBO | {"_class_name": "EulerAncestralDiscreteScheduler"}
EDIT: Config = SD1 | {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "timestep_spacing": "linspace",
}
LCM: Config = _BETAS | {
    "_class_name": "LCMScheduler",
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "original_inference_steps": 50,
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
}
