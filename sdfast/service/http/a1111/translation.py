"""A1111's fields → a Request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from .... import checks, prompts, samplers
from ....errors import InvalidRequest
from ....request import MAX_COUNT, MAX_SEED, Request
from .. import pictures
from . import options
from .fields import Fields, Img2Img, Txt2Img, passed_over
from .labels import sampling
from .masks import filled, mask_of

if TYPE_CHECKING:
    from ...limits import Limits
    from ...service import Service

UPSCALERS = {"Latent": "latent", "Lanczos": "stretch", "None": "stretch"}
"""Of a second pass: the `resize` that each stands for."""
RESIZES = ("stretch", "crop", "pad", "latent")
"""By resize_mode."""
STRENGTH = 0.75  # A1111's, where none is sent
_BLUR = 4.0
_FILL, _ORIGINAL = 0, 1
_SAME = ("", "Use same sampler", "Use same scheduler")
_NEUTRAL = {"eta": None, "s_churn": 0, "s_tmin": 0, "s_tmax": 0, "s_noise": 1}
"""Parameters that some samplers have, and what A1111 sends to those that have them not."""


@dataclass(frozen=True)
class Asked:
    """What fields ask for.

    model: the bundle's name; None for the caller's usual one
    ignored: fields that were sent and have no effect
    """

    request: Request
    model: str | None
    ignored: tuple[str, ...]

    def but(self, **parameters: Any) -> Asked:
        """The same with these parameters of the request."""
        return replace(self, request=replace(self.request, **parameters))


async def from_text(fields: Txt2Img, service: Service) -> Asked:
    """Of txt2img. Raises an SdfastError for what cannot be drawn as it is asked for."""
    asked = _common(fields, service)
    return asked.but(hires=_second(fields)) if fields.enable_hr else asked


async def from_picture(fields: Img2Img, service: Service) -> Asked:
    """Of img2img."""
    asked = _common(fields, service)
    if len(fields.init_images) != 1:
        raise InvalidRequest(
            f"init_images has {len(fields.init_images)} pictures; it must have one: ask for others "
            "by requests of their own"
        )
    mode = checks.whole("resize_mode", fields.resize_mode or 0, 0, len(RESIZES) - 1)
    strength = _strength(fields)
    image = await pictures.read("init_images", fields.init_images[0], service.limits)
    masked = await _masked(fields, image, service.limits) if fields.mask else {}
    started = {"image": image, "strength": strength, "resize": RESIZES[mode]}
    return asked.but(**{**started, **masked})


def _common(fields: Fields, service: Service) -> Asked:
    """What both routes have."""
    ignored = passed_over(fields)
    # One that is longer is refused by the service, before it is looked at.
    short = len(fields.prompt) <= service.limits.prompt
    if fields.disable_extra_networks and short and prompts.parse(fields.prompt).loras:
        raise InvalidRequest("the prompt names a LoRA, and disable_extra_networks is true")
    overridden = options.overridden(fields.override_settings or {}, service)
    found = sampling(fields.sampler_name or fields.sampler_index, fields.scheduler)
    parameters, without = _parameters(fields, found.sampler)
    request = Request(
        prompt=fields.prompt,
        negative_prompt=fields.negative_prompt or "",
        steps=fields.steps,
        sampler=found.sampler,
        schedule=found.schedule,
        sampler_parameters={**found.parameters, **parameters},
        guidance=fields.cfg_scale,
        seed=_seed(fields.seed),
        width=fields.width,
        height=fields.height,
        count=_count(fields),
        clip_skip=overridden.clip_skip,
    )
    return Asked(request, overridden.model, (*ignored, *without))


def _strength(fields: Fields) -> float:
    given = fields.denoising_strength
    return STRENGTH if given is None else checks.number("denoising_strength", given, 0, 1)


def _seed(seed: int | None) -> int | None:
    return None if seed in (None, -1) else checks.whole("seed", seed, 0, MAX_SEED)


def _count(fields: Fields) -> int:
    each = checks.whole("batch_size", _or(fields.batch_size, 1), 1, MAX_COUNT)
    return each * checks.whole("n_iter", _or(fields.n_iter, 1), 1, MAX_COUNT)


def _parameters(fields: Fields, sampler: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The sampler's own that were sent; and those that it does not have, or that are nobody's
    where the sampler is left open."""
    sent = {name: value for name in _NEUTRAL if (value := getattr(fields, name)) is not None}
    known = samplers.get(sampler).parameters if sampler else {}
    if sent.get("s_tmax") == 0:
        del sent["s_tmax"]
    had = {name: float(value) for name, value in sent.items() if name in known}
    return had, tuple(n for n, v in sent.items() if n not in known and v != _NEUTRAL[n])


def _second(fields: Txt2Img) -> dict[str, Any]:
    """The second pass, which takes all of its steps, as A1111's does."""
    upscaler = fields.hr_upscaler or "Latent"
    if upscaler not in UPSCALERS:
        raise InvalidRequest(
            f"hr_upscaler is {upscaler[:64]!r}; it must be one of {', '.join(UPSCALERS)}"
        )
    steps = fields.hr_second_pass_steps or fields.steps
    label = None if (fields.hr_sampler_name or "") in _SAME else fields.hr_sampler_name
    scheduler = None if (fields.hr_scheduler or "") in _SAME else fields.hr_scheduler
    found = sampling(label, scheduler)
    open_ones = {
        "steps": steps,
        "sampler": found.sampler,
        "sampler_parameters": found.parameters or None,
        "schedule": found.schedule,
        "prompt": fields.hr_prompt or None,
        "negative_prompt": fields.hr_negative_prompt or None,
    }
    return {
        "scale": _scale(fields),
        "resize": UPSCALERS[upscaler],
        "denoise": _strength(fields),
        **{name: value for name, value in open_ones.items() if value is not None},
    }


def _scale(fields: Txt2Img) -> float:
    """Of hr_scale, or of the size that hr_resize_x and hr_resize_y say."""
    wanted = (fields.hr_resize_x or 0, fields.hr_resize_y or 0)
    if not any(wanted):
        return 2.0 if fields.hr_scale is None else fields.hr_scale
    if fields.width is None or fields.height is None:
        raise InvalidRequest("hr_resize_x and hr_resize_y need width and height: send them too")
    sides = (fields.width, fields.height)
    scales = {w / side for w, side in zip(wanted, sides, strict=True) if w and side > 0}
    if len(scales) != 1:
        raise InvalidRequest(
            f"hr_resize_x and hr_resize_y are {wanted[0]}×{wanted[1]}; they must be as wide to "
            f"high as {sides[0]}×{sides[1]}: send hr_scale"
        )
    return scales.pop()


async def _masked(fields: Img2Img, image: Image.Image, limits: Limits) -> dict[str, Any]:
    """The parameters of a mask, and the picture as it is under it."""
    fill = _or(fields.inpainting_fill, _FILL)
    if fill not in (_FILL, _ORIGINAL):
        raise InvalidRequest(
            f"inpainting_fill is {fill}; it must be 0 (colours from around the mask) or 1 (the "
            "picture): what is drawn over noise alone has denoising_strength 1"
        )
    text = str(fields.mask)

    def read() -> tuple[Image.Image, Image.Image]:
        given = pictures.opened("mask", text, limits)
        mask = mask_of(given, bool(fields.inpainting_mask_invert))
        return mask, filled(image, mask) if fill == _FILL else image

    mask, under = await asyncio.to_thread(read)
    around = _or(fields.inpaint_full_res_padding, 0)
    whole = _or(fields.inpaint_full_res, True)
    return {
        "image": under,
        "mask": mask,
        "mask_blur": _or(fields.mask_blur, _BLUR),
        "mask_margin": around if whole else None,
    }


def _or(value: Any, usual: Any) -> Any:
    return usual if value is None else value
