"""What A1111's clients send to txt2img and img2img, field by field, as its API names them.

A field that is not sent, or null, is open: the bundle's default stands for it, or A1111's where
that is said. Of the fields that sdfast does not heed `OTHERS` says which change nothing, which are
passed over and named in the header x-sdfast-ignored, and which are refused, since the picture would
be another one than was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ....errors import InvalidRequest

IGNORED = "x-sdfast-ignored"
"""The header that names fields which were sent and had no effect."""
_NAMED = 32  # fields in that header at most
_NAME = re.compile("[A-Za-z0-9_.-]{1,64}")


class Fields(BaseModel):
    """Of both routes."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    prompt: str = ""
    negative_prompt: str | None = None
    styles: list[str] | None = None
    seed: int | None = Field(None, description="−1 for a random one, which `info` tells")
    subseed: int | None = None
    subseed_strength: float | None = None
    seed_resize_from_h: int | None = None
    seed_resize_from_w: int | None = None
    sampler_name: str | None = Field(
        None, description="as GET samplers lists them, with a schedule at the end or without"
    )
    sampler_index: str | None = Field(None, description="where there is no sampler_name")
    scheduler: str | None = Field(None, description="as GET schedulers lists them")
    batch_size: int | None = Field(None, description="pictures: batch_size × n_iter are drawn")
    n_iter: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool | None = None
    do_not_save_grid: bool | None = None
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = Field(None, description="0 for no bound")
    s_noise: float | None = None
    s_min_uncond: float | None = None
    denoising_strength: float | None = None
    override_settings: dict[str, Any] | None = Field(
        None, description="sd_model_checkpoint and CLIP_stop_at_last_layers; no others"
    )
    override_settings_restore_afterwards: bool | None = None
    disable_extra_networks: bool | None = None
    comments: dict[str, Any] | None = None
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    script_name: str | None = None
    script_args: list[Any] | None = None
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool | None = Field(None, description="false for `info` alone")
    save_images: bool | None = None
    force_task_id: str | None = None
    infotext: str | None = None


class Txt2Img(Fields):
    """POST /sdapi/v1/txt2img."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "a small red circle on a white background",
                    "sampler_name": "DPM++ 2M",
                    "scheduler": "Karras",
                    "steps": 20,
                    "cfg_scale": 5,
                    "seed": 1,
                }
            ]
        }
    )

    enable_hr: bool | None = None
    hr_scale: float | None = None
    hr_upscaler: str | None = Field(None, description="Latent, Lanczos or None")
    hr_second_pass_steps: int | None = Field(None, description="0 for as many as the first pass")
    hr_resize_x: int | None = None
    hr_resize_y: int | None = None
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = None
    hr_negative_prompt: str | None = None
    firstphase_width: int | None = None
    firstphase_height: int | None = None


class Img2Img(Fields):
    """POST /sdapi/v1/img2img."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "a small blue circle on a white background",
                    "init_images": ["data:image/png;base64,iVBORw0KGgo…"],
                    "denoising_strength": 0.6,
                }
            ]
        }
    )

    init_images: list[str] = Field(
        description="one picture: base64, alone or as a data URL; PNG, JPEG or WebP"
    )
    resize_mode: int | None = Field(None, description="0 stretch, 1 crop, 2 pad, 3 as latents")
    mask: str | None = Field(None, description="white where the picture is redrawn")
    latent_mask: str | None = None
    mask_blur: float | None = None
    mask_blur_x: float | None = None
    mask_blur_y: float | None = None
    inpainting_fill: int | None = Field(
        None, description="0: colours from around the mask, 1: the picture; 2 and 3 are refused"
    )
    inpaint_full_res: bool | int | None = None
    inpaint_full_res_padding: int | None = None
    inpainting_mask_invert: bool | int | None = None
    initial_noise_multiplier: float | None = None
    image_cfg_scale: float | None = None
    include_init_images: bool | None = None


@dataclass(frozen=True)
class Other:
    """A field that nothing here heeds.

    harmless: values that ask for nothing; None where whichever it has changes nothing
    refused: for others, what is not done here; None where they are passed over
    """

    harmless: tuple[Any, ...] | None = ()
    refused: str | None = None


_MOOT = Other(None)
_TWICE = "there is one picture on the way, of the size that is asked for"
_VARIED = "variations by a second seed are not drawn here"
_RESIZED = "noise of another size is not drawn here"

OTHERS: Mapping[str, Other] = {
    "styles": Other(([],)),
    "subseed": _MOOT,  # of strength 0
    "subseed_strength": Other((0,), _VARIED),
    "seed_resize_from_h": Other((0, -1), _RESIZED),
    "seed_resize_from_w": Other((0, -1), _RESIZED),
    "restore_faces": Other((False,)),
    "tiling": Other((False,), "pictures whose borders fit each other are not drawn here"),
    "do_not_save_samples": _MOOT,  # nothing is
    "do_not_save_grid": _MOOT,
    "save_images": Other((False,)),
    "s_min_uncond": Other((0,)),
    "override_settings_restore_afterwards": Other((True,)),  # they are of one request alone
    "comments": Other(({},)),
    "refiner_checkpoint": Other(("", "None"), "no second model refines pictures here"),
    "refiner_switch_at": _MOOT,
    "script_name": Other(("", "None"), "scripts are not run here"),
    "script_args": Other(([],)),
    "force_task_id": Other(("",)),
    "infotext": Other(
        ("",), "it is not read here: send its values as fields (POST png-info tells them)"
    ),
    "hr_checkpoint_name": Other(
        ("", "None", "Use same checkpoint"), "both passes are of one model here"
    ),
    "firstphase_width": Other((0,), _TWICE),
    "firstphase_height": Other((0,), _TWICE),
    "latent_mask": Other((), "a mask of latents is not applied here: send it as mask"),
    "mask_blur_x": Other((4,), "send mask_blur, for both directions"),
    "mask_blur_y": Other((4,), "send mask_blur, for both directions"),
    "initial_noise_multiplier": Other((1,), "the noise that a picture is put under is as it is"),
    "image_cfg_scale": Other(),
    "include_init_images": Other((False,)),
}


def passed_over(fields: Fields) -> tuple[str, ...]:
    """The fields that were sent and have no effect. Raises InvalidRequest for those without which
    the picture would be another one."""
    ignored = [*(fields.model_extra or ())]
    for name, other in OTHERS.items():
        value = getattr(fields, name, None)
        if value is None or other.harmless is None or value in other.harmless:
            continue
        if other.refused is not None:
            raise InvalidRequest(f"{name}: {other.refused}; leave it out")
        ignored.append(name)
    for name, script in (fields.alwayson_scripts or {}).items():
        if (script.get("args") if isinstance(script, dict) else script) not in ([], [False], None):
            raise InvalidRequest(
                f"alwayson_scripts has {name[:64]!r}: scripts are not run here; leave it out"
            )
    return tuple(ignored)


def told(ignored: tuple[str, ...]) -> dict[str, str]:
    """As headers: names that are no words are told by their number alone."""
    if not ignored:
        return {}
    words = [name for name in dict.fromkeys(ignored) if _NAME.fullmatch(name)][:_NAMED]
    more = len(set(ignored)) - len(words)
    return {IGNORED: ", ".join([*words, *([f"{more} more"] if more else [])])}
