"""What a request may ask for: /v1/options, by which the page and other clients offer it."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter
from pydantic import Field

from ... import __version__, samplers, schedules
from ... import bundle as bundles
from ...request import MAX_COUNT, MAX_STEPS
from ...starts import STRENGTH
from .fields import Body
from .settings import Settings

if TYPE_CHECKING:
    from ..gate import Model
    from ..limits import Limits
    from ..service import Service

RATIOS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))
"""Of the sides of pictures that are offered, width : height."""


class Size(Body):
    """In pixels, with the ratio that it is nearest to."""

    ratio: Annotated[str, Field(examples=["4:3"])]
    width: int
    height: int


class Sizes(Body):
    """Of a model, in pixels: its own, what sides must be a multiple of and between, the pixels of a
    picture at most, and a few that are usual."""

    width: int
    height: int
    minimum: int
    maximum: int
    multiple: int
    pixels: int
    usual: list[Size]


class Preset(Body):
    """Parameters of a request under a name."""

    name: Annotated[str, Field(examples=["Usual"])]
    steps: int
    sampler: str
    schedule: str
    guidance: float


class Drawer(Body):
    """A model. previews: whether it draws some; from_pictures: whether it starts from pictures."""

    name: str
    digest: str
    sizes: Sizes
    presets: list[Preset]
    previews: bool
    from_pictures: bool


class Method(Body):
    """A sampler."""

    name: str
    family: str
    about: str


class Most(Body):
    """The most that a request may have: characters of a prompt, bytes of its body, pixels of a
    picture that is given."""

    steps: int
    count: int
    prompt: int
    body: int
    input_pixels: int


class Options(Body):
    """The first model is the default; strength: that of a picture to start from."""

    version: str
    models: list[Drawer]
    samplers: list[Method]
    schedules: list[str]
    strength: float
    limits: Most


def router(service: Service, settings: Settings) -> APIRouter:
    routes = APIRouter(tags=["sdfast"])
    found = options(service.models, service.limits)

    @routes.get("/v1/options", summary="What a request may ask for")
    async def allowed() -> Options:
        """The models with their sizes and presets; samplers, schedules and limits."""
        return found

    return routes


def options(models: Mapping[str, Model], limits: Limits) -> Options:
    by_family = sorted(map(samplers.get, samplers.names()), key=lambda one: one.family)
    return Options(
        version=__version__,
        models=[_drawer(model, limits) for model in models.values()],
        samplers=[
            Method(name=one.name, family=one.family.replace("_", " "), about=one.doc)
            for one in by_family
        ],
        schedules=list(schedules.names()),
        strength=STRENGTH,
        limits=Most(
            steps=min(limits.steps, MAX_STEPS),
            count=min(limits.images, MAX_COUNT),
            prompt=limits.prompt,
            body=limits.body,
            input_pixels=limits.input_pixels,
        ),
    )


def _drawer(model: Model, limits: Limits) -> Drawer:
    manifest = model.manifest
    defaults, networks = manifest.defaults, manifest.networks
    return Drawer(
        name=model.name,
        digest=model.digest,
        sizes=sizes(manifest.sizes, limits.pixels or manifest.sizes.maximum**2),
        presets=[] if defaults is None else presets(defaults, limits.steps),
        previews=manifest.preview is not None or "preview_decoder" in networks,
        from_pictures="vae_encoder" in networks,
    )


def presets(defaults: bundles.Defaults, most: int) -> list[Preset]:
    """Ways to draw: as the model's defaults say, in half of their steps, and in twice as many, but
    in `most` steps at most."""
    steps = {
        "Quick": max(1, defaults.steps // 2),
        "Usual": defaults.steps,
        "Fine": 2 * defaults.steps,
    }
    return [
        Preset(
            name=name,
            steps=min(count, most),
            sampler=defaults.sampler,
            schedule=defaults.schedule,
            guidance=defaults.guidance,
        )
        for name, count in steps.items()
    ]


def sizes(own: bundles.Sizes, most: int) -> Sizes:
    """Those of pictures of `most` pixels at most. Where the model's own size is larger, the first
    of the usual ones is in its place."""
    usual = usual_sizes(own, most)
    first = usual[0] if usual and own.width * own.height > most else own
    return Sizes(
        width=first.width,
        height=first.height,
        minimum=own.minimum,
        maximum=own.maximum,
        multiple=own.multiple,
        pixels=most,
        usual=usual,
    )


def usual_sizes(own: bundles.Sizes, most: int) -> list[Size]:
    """Of the sizes of `most` pixels at most that the model draws, those nearest to the ratios that
    people ask for and to as many pixels as its own size has."""
    sides = range(own.minimum, own.maximum + 1, own.multiple)
    allowed = [(w, h) for w in sides for h in sides if w * h <= most]

    def away(size: tuple[int, int], ratio: float) -> float:
        width, height = size
        pixels = width * height / (own.width * own.height)
        return abs(log(width / height / ratio)) + abs(log(pixels)) / 4

    found = []
    for across, down in RATIOS if allowed else ():
        width, height = min(allowed, key=lambda size: away(size, across / down))
        found.append(Size(ratio=f"{across}:{down}", width=width, height=height))
    return found
