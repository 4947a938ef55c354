"""A request: every parameter of one generation, checked once, frozen."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from . import caching, checks, control, noise, samplers, schedules
from .bundle import Bundle, Sizes, noise_schedule
from .caching import Cache
from .canvas import Canvas, told
from .control import Control
from .errors import InvalidRequest, nearest
from .schedules import NoiseSchedule
from .starts import Start, second_pass, start

CUSTOM = "custom"  # the schedule of a request that brings its own sigmas
MAX_STEPS = 1000
MAX_COUNT = 64
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Request:
    """What to draw and how. `None` stands for the bundle's default, and for the seed a random one;
    `resolve` fills them in.

    prompt, negative_prompt: text; guidance moves the picture toward the first and away from the
        second
    steps: of the sampler, 1…1000
    sampler, schedule: names or aliases (`sdfast samplers` lists them)
    sampler_parameters, schedule_parameters: those of their own, by name: {"eta": 0.5}
    sigmas: noise levels to visit in place of a schedule's: strictly descending from 2¹⁶ at most to
        0, or to 2⁻¹⁶ at least
    discard_penultimate: whether to leave out the schedule's smallest level above 0, of one step
        more, as ComfyUI does for some samplers; None for what the sampler itself wants
    guidance: scale of classifier-free guidance (arXiv:2207.12598), ≥ 0; 1 leaves it out
    guidance_rescale: part of its excess contrast that is taken back (arXiv:2305.08891), 0…1
    guidance_interval: noise levels (low, high) between which it acts (arXiv:2404.07724),
        0 ≤ low < high; None for everywhere. Outside a step takes about half the time
    seed: of the first image, 0…2⁶⁴ − 1; image k has seed + k
    width, height: pixels
    count: images, 1…64
    rng: "philox" draws the noise that PyTorch draws on CUDA, "torch" what it draws on a CPU
    image: what to start from in place of noise alone: a picture's path, a Pillow picture or a data
        URL; width and height are then its own, fitted to what the bundle draws
    strength: how far to go away from it, 0…1: of the steps as large a part is taken, from as much
        noise (diffusers' strength). 0 leaves it as it is, 1 starts from noise alone. None: 0.6,
        or 1 where a mask or outpaint says what is redrawn
    denoise: the same as ComfyUI counts: all the steps are taken, of a run that has more of them
    resize: one of canvas.RESIZES, for an image of another size
    mask: a picture of the image's sides, white where it is redrawn; what is black comes back
        exactly as it was, at the size that is drawn
    mask_blur: pixels over which the drawn part fades in, inside of the mask, 0…256
    mask_margin: where given, 0…4096, only the part around the mask, with as many pixels around it,
        is drawn, with width × height, and put back into the image, which keeps its size
    outpaint: pixels (left, top, right, bottom) that are put around the image and drawn
    hires: what differs in a second pass over the first one's pictures: {"scale": 2} with any of
        starts.HIRES; its strength is 0.5 and its resize "stretch" where they are not given
    clip_skip: the last layers of the text encoders that are left out, 0…11, beside those that the
        model always leaves out; diffusers' clip_skip, and one less than A1111's
    control: pictures that steer the run by ControlNets and T2I-Adapters, each {"bundle": its own,
        "image": a map of the size that is drawn} with any more of control.KEYS: "weight" −2…2 [1],
        "start" and "end" of the part of the steps that it acts in [0, 1], and "preprocess": "canny"
        for a picture whose edges are the map
    cache: 1…1000, every how many evaluations the whole U-Net runs; between them its outermost part
        does alone, with what the whole left (arXiv:2312.00858), which takes a part of the time for
        nearly the same picture. A tuple names those that run the whole: (0, 1, 3, 6, 10). "auto":
        3, or 2 for a sampler that draws noise between its steps
    """

    prompt: str
    negative_prompt: str = ""
    steps: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    sampler_parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    schedule_parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    sigmas: tuple[float, ...] | None = None
    discard_penultimate: bool | None = None
    guidance: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    count: int = 1
    rng: str = "philox"
    cache: Cache | str = 1
    image: Any = field(default=None, hash=False)
    strength: float | None = None
    denoise: float | None = None
    resize: str = "crop"
    mask: Any = field(default=None, hash=False)
    mask_blur: float = 0.0
    mask_margin: int | None = None
    outpaint: tuple[int, int, int, int] | None = None
    hires: Mapping[str, Any] | None = field(default=None, hash=False)
    control: Any = field(default=None, hash=False)
    clip_skip: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; pictures as `canvas.told` tells them."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        steered = control.told(self.control, told)
        return {
            **values,
            "image": told(self.image),
            "mask": told(self.mask),
            "control": steered,
        }

    def alone(self, image: int) -> Request:
        """That of one of its images, by its number. The seed has to be known."""
        assert self.seed is not None
        seed = (self.seed + image) % (MAX_SEED + 1)
        own = control.of_image(self.control, image)
        return replace(self, seed=seed, count=1, control=own)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Request:
        """From plain data; raises InvalidRequest for an unknown or missing parameter."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                own = any(name in samplers.get(s).parameters for s in samplers.names())
                where = ": samplers' own go into sampler_parameters" if own else ""
                raise InvalidRequest(
                    f"unknown parameter {name!r}{where or nearest(name, known)}; known: "
                    + ", ".join(known)
                )
        if "prompt" not in values:
            raise InvalidRequest("the request has no prompt: say what to draw")
        return cls(**{name: _held(value) for name, value in values.items()})


def _held(value: Any) -> Any:
    """A value of JSON as a request holds it: it is compared and hashed, so lists are tuples."""
    if isinstance(value, list):
        return tuple(value)
    return {k: _held(v) for k, v in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Resolved:
    """A request whose every parameter is known and within its range for one bundle.

    sigmas: the noise levels that its run visits; one alone where it draws nothing
    canvas: that it draws on; from_picture: whether the picture is under the noise that it starts
        from; blended: whether the program keeps what is outside of its mask
    second: the second pass, whose canvas is the first's pictures
    """

    prompt: str
    negative_prompt: str
    steps: int
    sampler: str
    schedule: str
    sampler_parameters: Mapping[str, Any]
    schedule_parameters: Mapping[str, Any]
    sigmas: tuple[float, ...]
    discard_penultimate: bool
    guidance: float
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    seed: int
    width: int
    height: int
    count: int
    rng: str
    cache: Cache
    image: Any
    strength: float | None
    denoise: float | None
    resize: str
    mask: Any
    mask_blur: float
    mask_margin: int | None
    outpaint: tuple[int, int, int, int] | None
    hires: Mapping[str, Any] | None
    clip_skip: int
    control: Any
    controls: tuple[Control, ...]
    tiled: bool
    canvas: Canvas | None
    from_picture: bool
    blended: bool
    second: Resolved | None

    @property
    def draws(self) -> bool:
        """Whether any step is taken."""
        return len(self.sigmas) > 1

    @property
    def by_host(self) -> bool:
        """Whether it needs what no graph of a GPU holds."""
        return self.tiled or bool(self.controls)

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed an image."""
        return tuple((self.seed + k) % (MAX_SEED + 1) for k in range(self.count))

    def as_request(self) -> Request:
        """The request with nothing left open."""
        values = {one.name: getattr(self, one.name) for one in fields(Request)}
        sigmas = self.sigmas if self.schedule == CUSTOM else None
        return Request(**{**values, "sigmas": sigmas})


def resolve(request: Request, bundle: Bundle, precision: str = "fp32") -> Resolved:
    """Checks every parameter against its range and fills in the bundle's defaults.

    precision: that the networks compute in, by which some parameters of samplers have another one
    Raises InvalidRequest, UnknownSampler or UnknownSchedule.
    """
    given, sizes = _filled(request, bundle), bundle.sizes
    prompt = checks.text("prompt", given.prompt)
    if not prompt.strip():
        raise InvalidRequest("the prompt is empty: say in a few words what to draw")
    if given.rng not in noise.RNGS:
        raise InvalidRequest(f"rng is {given.rng!r}; it must be one of {', '.join(noise.RNGS)}")
    sampler = samplers.get(checks.text("sampler", given.sampler))
    coarse = {} if precision == "fp32" else sampler.coarse
    parameters = {**coarse, **checks.by_name("sampler_parameters", given.sampler_parameters)}
    sampler.check(parameters)
    discard = _discard(given.discard_penultimate, sampler)
    begin = start(given, sizes)
    schedule, levels = _levels(given, discard, noise_schedule(bundle.betas), begin)
    count = checks.whole("count", given.count, 1, MAX_COUNT)
    again = second_pass(given, begin, sizes)
    return Resolved(
        prompt=prompt,
        negative_prompt=checks.text("negative_prompt", given.negative_prompt),
        steps=checks.whole("steps", given.steps, 1, MAX_STEPS),
        sampler=sampler.name,
        schedule=schedule,
        sampler_parameters={
            k: v for k, v in parameters.items() if k in coarse or v != sampler.parameters[k]
        },
        schedule_parameters=checks.by_name("schedule_parameters", given.schedule_parameters),
        sigmas=levels,
        discard_penultimate=discard,
        guidance=checks.number("guidance", given.guidance, 0, 100),
        guidance_rescale=checks.number("guidance_rescale", given.guidance_rescale, 0, 1),
        guidance_interval=checks.interval("guidance_interval", given.guidance_interval),
        seed=checks.whole("seed", given.seed, 0, MAX_SEED),
        width=begin.width,
        height=begin.height,
        count=count,
        rng=given.rng,
        cache=_cache(given.cache, sampler, bundle),
        image=given.image,
        strength=begin.strength,
        denoise=begin.denoise,
        resize=given.resize,
        mask=given.mask,
        mask_blur=float(given.mask_blur),
        mask_margin=given.mask_margin,
        outpaint=given.outpaint,
        hires=given.hires,
        clip_skip=checks.whole("clip_skip", given.clip_skip, 0, 11),
        control=given.control,
        controls=_controls(given, begin, count),
        tiled=_tiled(given, begin, sizes),
        canvas=begin.canvas,
        from_picture=begin.from_picture,
        blended=begin.masked and bundle.manifest.task != "inpaint",
        second=None if again is None else resolve(again, bundle, precision),
    )


def _filled(request: Request, bundle: Bundle) -> Request:
    """With the bundle's defaults and a seed in what is left open, as yet unchecked."""
    defaults = bundle.defaults
    steps, schedule = defaults.steps, defaults.schedule
    if request.sigmas is not None:
        steps, schedule = len(checks.sequence("sigmas", request.sigmas)) - 1, CUSTOM
    elif request.sampler is not None and request.schedule is None:
        label = checks.text("sampler", request.sampler)
        schedule = samplers.labelled_schedule(label) or schedule
    return replace(
        request,
        steps=steps if request.steps is None else request.steps,
        sampler=defaults.sampler if request.sampler is None else request.sampler,
        schedule=schedule if request.schedule is None else request.schedule,
        guidance=defaults.guidance if request.guidance is None else request.guidance,
        seed=secrets.randbits(32) if request.seed is None else request.seed,
    )


def visited(
    name: str, steps: int, ns: NoiseSchedule, discard: bool, **parameters: Any
) -> tuple[float, ...]:
    """The noise levels of a run of `steps` on a schedule, without its smallest above 0 if that is
    to be discarded (of one step more, where there is one)."""
    if discard and steps < len(ns.sigmas):
        return schedules.discard_penultimate(schedules.sigmas(name, steps + 1, ns, **parameters))
    return schedules.sigmas(name, steps, ns, **parameters)


def _levels(
    given: Request, discard: bool, ns: NoiseSchedule, begin: Start
) -> tuple[str, tuple[float, ...]]:
    """The schedule's name and the noise levels of the run."""
    parameters = checks.by_name("schedule_parameters", given.schedule_parameters)
    if given.sigmas is None:
        name = schedules.get(checks.text("schedule", given.schedule))
        steps = checks.whole("steps", given.steps, 1, min(MAX_STEPS, len(ns.sigmas)))
        whole = steps
        if begin.denoise is not None:  # at 0 nothing is drawn
            whole = int(steps / begin.denoise) if begin.denoise else steps
            if whole > len(ns.sigmas):
                raise InvalidRequest(
                    f"denoise is {begin.denoise}: {steps} steps would be the last of {whole}, and "
                    f"the model has {len(ns.sigmas)} noise levels: take fewer steps"
                )
        levels = visited(name, whole, ns, discard, **parameters)
        taken = steps if begin.denoise else begin.taken(len(levels) - 1)
        return name, levels[-1 - (0 if begin.denoise == 0 else taken) :]
    if given.schedule != CUSTOM or given.steps != len(given.sigmas) - 1 or parameters:
        raise InvalidRequest(
            "sigmas are a schedule of their own: leave out steps, schedule and its parameters"
        )
    if given.steps > MAX_STEPS:
        raise InvalidRequest(f"there are {given.steps} steps of sigmas; {MAX_STEPS} are allowed")
    levels = tuple(map(checks.real, given.sigmas))
    samplers.check_sigmas(levels)
    if not all(sigma == 0 or 2**-16 <= sigma <= 2**16 for sigma in levels):
        raise InvalidRequest("every sigma must be 0 or from 2⁻¹⁶ (0.0000153) to 2¹⁶ (65536)")
    if any(b > a * (1 - schedules.CLOSEST) for a, b in pairwise(levels)):
        raise InvalidRequest("neighbouring sigmas must be a millionth apart or more")
    return CUSTOM, levels


def _tiled(given: Request, begin: Start, sizes: Sizes) -> bool:
    """Whether the network sees the picture in tiles."""
    found = max(begin.width, begin.height) > sizes.maximum
    if found and (given.control is not None or given.cache != 1):
        raise InvalidRequest(
            f"pictures above {sizes.maximum} pixels a side are drawn in tiles, without control and "
            "cache: leave those out, or take a smaller width and height"
        )
    return found


def _controls(given: Request, begin: Start, count: int) -> tuple[Control, ...]:
    found = control.controls(given.control, (begin.width, begin.height), count)
    if found and given.cache != 1:
        raise InvalidRequest(
            "control changes every evaluation of the network, so that none can be cached: leave "
            "out cache"
        )
    return found


def _discard(value: object, sampler: samplers.Sampler) -> bool:
    if value is None:
        return sampler.drops_penultimate
    if not isinstance(value, bool):
        raise InvalidRequest(f"discard_penultimate is {value!r}; it must be True, False or None")
    return value


def _cache(value: object, sampler: samplers.Sampler, bundle: Bundle) -> Cache:
    cache = caching.usual(sampler) if value == caching.AUTO else caching.checked(value)
    if cache == 1:
        return cache
    if not sampler.static:
        raise InvalidRequest(
            f"sampler {sampler.name} chooses its steps by the picture, so that none can be cached: "
            "leave out cache, or take another sampler"
        )
    if "unet_shallow" not in bundle.manifest.networks:
        raise InvalidRequest(
            f"bundle {bundle.name} has no unet_shallow, which cached steps run: leave out cache, "
            "or export it again by a recipe that lists unet_shallow"
        )
    return cache
