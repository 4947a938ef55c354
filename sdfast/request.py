"""A request: every parameter of one generation, checked once, frozen."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from . import caching, noise, samplers, schedules
from .bundle import Bundle, Sizes, noise_schedule
from .caching import Cache
from .errors import InvalidRequest, nearest
from .schedules import NoiseSchedule

CUSTOM = "custom"  # the schedule of a request that brings its own sigmas
MAX_STEPS = 1000
MAX_COUNT = 64
MAX_SEED = 2**64 - 1
_LARGEST = sys.float_info.max


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

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)

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
    """A request whose every parameter is known and within its range for one bundle; `sigmas` are
    the noise levels that its run visits."""

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

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed an image."""
        return tuple((self.seed + k) % (MAX_SEED + 1) for k in range(self.count))

    def as_request(self) -> Request:
        """The request with nothing left open."""
        sigmas = self.sigmas if self.schedule == CUSTOM else None
        return Request(**{**asdict(self), "sigmas": sigmas})


def resolve(request: Request, bundle: Bundle, precision: str = "fp32") -> Resolved:
    """Checks every parameter against its range and fills in the bundle's defaults.

    precision: that the networks compute in, by which some parameters of samplers have another one
    Raises InvalidRequest, UnknownSampler or UnknownSchedule.
    """
    defaults, sizes = bundle.defaults, bundle.sizes
    steps, schedule = defaults.steps, defaults.schedule
    if request.sigmas is not None:
        steps, schedule = len(_tuple("sigmas", request.sigmas)) - 1, CUSTOM
    elif request.sampler is not None and request.schedule is None:
        label = _text("sampler", request.sampler)
        schedule = samplers.labelled_schedule(label) or schedule
    given = replace(
        request,
        steps=steps if request.steps is None else request.steps,
        sampler=defaults.sampler if request.sampler is None else request.sampler,
        schedule=schedule if request.schedule is None else request.schedule,
        guidance=defaults.guidance if request.guidance is None else request.guidance,
        width=sizes.width if request.width is None else request.width,
        height=sizes.height if request.height is None else request.height,
        seed=secrets.randbits(32) if request.seed is None else request.seed,
    )
    prompt = _text("prompt", given.prompt)
    if not prompt.strip():
        raise InvalidRequest("the prompt is empty: say in a few words what to draw")
    if given.rng not in noise.RNGS:
        raise InvalidRequest(f"rng is {given.rng!r}; it must be one of {', '.join(noise.RNGS)}")
    sampler = samplers.get(_text("sampler", given.sampler))
    coarse = {} if precision == "fp32" else sampler.coarse
    parameters = {**coarse, **_named("sampler_parameters", given.sampler_parameters)}
    sampler.check(parameters)
    discard = _discard(given.discard_penultimate, sampler)
    schedule, levels = _levels(given, discard, noise_schedule(bundle.betas))
    return Resolved(
        prompt=prompt,
        negative_prompt=_text("negative_prompt", given.negative_prompt),
        steps=_integer("steps", given.steps, 1, MAX_STEPS),
        sampler=sampler.name,
        schedule=schedule,
        sampler_parameters={
            k: v for k, v in parameters.items() if k in coarse or v != sampler.parameters[k]
        },
        schedule_parameters=_named("schedule_parameters", given.schedule_parameters),
        sigmas=levels,
        discard_penultimate=discard,
        guidance=_number("guidance", given.guidance, 0, 100),
        guidance_rescale=_number("guidance_rescale", given.guidance_rescale, 0, 1),
        guidance_interval=_interval("guidance_interval", given.guidance_interval),
        seed=_integer("seed", given.seed, 0, MAX_SEED),
        width=check_side("width", given.width, sizes),
        height=check_side("height", given.height, sizes),
        count=_integer("count", given.count, 1, MAX_COUNT),
        rng=given.rng,
        cache=_cache(given.cache, sampler, bundle),
    )


def visited(
    name: str, steps: int, ns: NoiseSchedule, discard: bool, **parameters: Any
) -> tuple[float, ...]:
    """The noise levels of a run of `steps` on a schedule, without its smallest above 0 if that is
    to be discarded (of one step more, where there is one)."""
    if discard and steps < len(ns.sigmas):
        return schedules.discard_penultimate(schedules.sigmas(name, steps + 1, ns, **parameters))
    return schedules.sigmas(name, steps, ns, **parameters)


def _levels(given: Request, discard: bool, ns: NoiseSchedule) -> tuple[str, tuple[float, ...]]:
    """The schedule's name and the noise levels of the run."""
    parameters = _named("schedule_parameters", given.schedule_parameters)
    if given.sigmas is None:
        name = schedules.get(_text("schedule", given.schedule))
        steps = _integer("steps", given.steps, 1, min(MAX_STEPS, len(ns.sigmas)))
        return name, visited(name, steps, ns, discard, **parameters)
    if given.schedule != CUSTOM or given.steps != len(given.sigmas) - 1 or parameters:
        raise InvalidRequest(
            "sigmas are a schedule of their own: leave out steps, schedule and its parameters"
        )
    if given.steps > MAX_STEPS:
        raise InvalidRequest(f"there are {given.steps} steps of sigmas; {MAX_STEPS} are allowed")
    levels = tuple(map(_real, given.sigmas))
    samplers.check_sigmas(levels)
    if not all(sigma == 0 or 2**-16 <= sigma <= 2**16 for sigma in levels):
        raise InvalidRequest("every sigma must be 0 or from 2⁻¹⁶ (0.0000153) to 2¹⁶ (65536)")
    if any(b > a * (1 - schedules.CLOSEST) for a, b in pairwise(levels)):
        raise InvalidRequest("neighbouring sigmas must be a millionth apart or more")
    return CUSTOM, levels


def _discard(value: object, sampler: samplers.Sampler) -> bool:
    if value is None:
        return sampler.drops_penultimate
    if not isinstance(value, bool):
        raise InvalidRequest(f"discard_penultimate is {value!r}; it must be True, False or None")
    return value


def _named(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(f"{name} is {value!r}; it must be values by name, as {{'eta': 0.5}}")
    return dict(value)


def _tuple(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise InvalidRequest(f"{name} is {value!r}; it must be a list of numbers")
    return tuple(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text; it is {type(value).__name__}")
    return value


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    return value


def _real(value: object) -> float:
    """The finite number that a value is; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        return math.nan
    return float(value)


def _number(name: str, value: object, low: int, high: int) -> float:
    number = _real(value)
    if not low <= number <= high:
        raise InvalidRequest(f"{name} is {value!r}; it must be a number from {low} to {high}")
    return number


def _interval(name: str, value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = value if isinstance(value, tuple | list) and len(value) == 2 else (None, None)
    low, high = map(_real, pair)
    if not 0 <= low < high:
        raise InvalidRequest(
            f"{name} is {value!r}; it must be two noise levels (low, high) with 0 <= low < high"
        )
    return low, high


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


def check_side(name: str, value: object, sizes: Sizes) -> int:
    """A side of a picture in pixels, as the bundle draws them. Raises InvalidRequest."""
    low, high, multiple = sizes.minimum, sizes.maximum, sizes.multiple
    side = _integer(name, value, low, high)
    if side % multiple:
        below, above = side // multiple * multiple, -(-side // multiple) * multiple
        fitting = [str(s) for s in (below, above) if low <= s <= high]
        raise InvalidRequest(
            f"{name} is {side}; it must be a multiple of {multiple} pixels: try "
            + " or ".join(fitting)
        )
    return side
