"""Options that several commands have: the parameters of requests, and how a bundle is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..request_text import named, named_several, read, read_several

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..provenance import Origin

_C = TypeVar("_C", bound=Callable[..., Any])


@dataclass(frozen=True)
class _Parameter:
    """A parameter of Request as an option. bare: what it is where no value follows it; joined:
    what is put between the values of one that is given several times, which are one value then."""

    flag: str
    name: str
    metavar: str
    help: str
    bare: str | None = None
    joined: str | None = None


_PARAMETERS = (
    _Parameter("--negative", "negative_prompt", "TEXT", "What the picture should not show."),
    _Parameter("--steps", "steps", "N", "Steps of the sampler."),
    _Parameter("--sampler", "sampler", "NAME", "See `sdfast samplers`."),
    _Parameter("--schedule", "schedule", "NAME", "Sigma schedule: see `sdfast samplers`."),
    _Parameter(
        *("--sampler-parameter", "sampler_parameters", "NAME=VALUE"),
        "One of the sampler's own, such as eta=0.5; may be given again.",
    ),
    _Parameter(
        *("--schedule-parameter", "schedule_parameters", "NAME=VALUE"),
        "One of the schedule's own, such as rho=5; may be given again.",
    ),
    _Parameter(
        *("--sigmas", "sigmas", "A,B,…"),
        "Noise levels to visit in place of a schedule's, such as 14.6,3,0.5,0.",
    ),
    _Parameter("--guidance", "guidance", "SCALE", "Of classifier-free guidance; 1: none."),
    _Parameter(
        *("--guidance-rescale", "guidance_rescale", "PART"),
        "Part of its contrast to take back, 0…1. [0]",
    ),
    _Parameter(
        *("--guidance-interval", "guidance_interval", "LOW,HIGH"),
        "Noise levels between which guidance acts; steps outside are faster. [everywhere]",
    ),
    _Parameter(
        *("--cache", "cache", "[N|0,A,B,…]"),
        "Run the whole U-Net at every N-th evaluation, or those given, alone. [1; bare: auto]",
        bare="auto",
    ),
    _Parameter(
        "--seed", "seed", "N", "Of the first image; image k has seed + k. [random; of a batch 0]"
    ),
    _Parameter("--width", "width", "PIXELS", "Of the picture."),
    _Parameter("--height", "height", "PIXELS", "Of the picture."),
    _Parameter("--count", "count", "N", "Images for each prompt."),
    _Parameter(
        *("--clip-skip", "clip_skip", "LAYERS"),
        "Last layers of the text encoders to leave out, as diffusers counts. [0]",
    ),
    _Parameter("--image", "image", "FILE", "A picture to start from, in place of noise alone."),
    _Parameter(
        *("--strength", "strength", "PART"),
        "How far to go away from it, 0…1. [0.6; with a mask 1]",
    ),
    _Parameter("--denoise", "denoise", "PART", "The same as ComfyUI counts: --steps are taken."),
    _Parameter(
        "--resize", "resize", "HOW", "Of another size: crop, stretch, pad or latent. [crop]"
    ),
    _Parameter("--mask", "mask", "FILE", "A picture that is white where --image is redrawn."),
    _Parameter("--mask-blur", "mask_blur", "PIXELS", "Over which the redrawn part fades in. [0]"),
    _Parameter(
        *("--mask-margin", "mask_margin", "PIXELS"),
        "Draw the part around the mask alone, with as many pixels around it, at full size.",
    ),
    _Parameter(
        *("--outpaint", "outpaint", "L,T,R,B"),
        "Pixels to put around --image and draw, on its left, top, right and bottom.",
    ),
    _Parameter(
        *("--control", "control", "BUNDLE=MAP [NAME=VALUE …]"),
        "Steer by the bundle of a ControlNet or T2I-Adapter and a picture, with weight=, start=, "
        "end= or preprocess=canny; may be given again.",
        joined=";",
    ),
    _Parameter(
        *("--hires", "hires", "SCALE [NAME=VALUE …]"),
        'Draw the picture again at its size times SCALE, as in "2 strength=0.4 steps=10".',
    ),
    _Parameter(
        "--rng", "rng", "NAME", "philox (PyTorch on CUDA) or torch (PyTorch on a CPU). [philox]"
    ),
)
_OWN = ("sampler_parameters", "schedule_parameters")
_DISCARD = click.option(
    "--discard-penultimate/--keep-penultimate",
    default=None,
    help="Whether to leave out the schedule's smallest level. [as the sampler wants]",
)


def of_a_request(command: _C) -> _C:
    """Every parameter of a Request but the prompt, by its name; None where it is not given."""
    return _decorated(command, _one)


def of_a_sweep(command: _C) -> _C:
    """The same with lists: a tuple of the values of each, empty where it is not given; of a
    sampler's or schedule's own the tuples by name."""
    return _decorated(command, _several)


def _decorated(command: _C, option: Callable[[_Parameter], Callable[[_C], _C]]) -> _C:
    command = _DISCARD(command)
    for parameter in reversed(_PARAMETERS):
        command = option(parameter)(command)
    return command


def _one(parameter: _Parameter) -> Callable[[_C], _C]:
    def one(_: click.Context, option: click.Parameter, text: Any) -> Any:
        if parameter.name in _OWN:
            return named(text) or None
        text = _joined(parameter, text)
        return None if text is None else read(parameter.name, text, option.opts[0])

    return _option(parameter, one, parameter.name in _OWN or parameter.joined is not None)


def _joined(parameter: _Parameter, text: Any) -> Any:
    if parameter.joined is None:
        return text
    return parameter.joined.join(text) if text else None


def _several(parameter: _Parameter) -> Callable[[_C], _C]:
    def several(_: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> Any:
        if parameter.name in _OWN:
            return named_several(texts)
        if parameter.joined is not None:
            texts = (parameter.joined.join(texts),) if texts else ()
        return tuple(
            value for text in texts for value in read_several(parameter.name, text, option.opts[0])
        )

    return _option(parameter, several, True)


def _option(
    parameter: _Parameter, callback: Callable[..., Any], multiple: bool
) -> Callable[[_C], _C]:
    bare: dict[str, Any] = (
        {} if parameter.bare is None else {"is_flag": False, "flag_value": parameter.bare}
    )
    return click.option(
        parameter.flag,
        parameter.name,
        metavar=parameter.metavar,
        help=parameter.help,
        multiple=multiple,
        callback=callback,
        **bare,
    )


def of_opening(command: _C) -> _C:
    """Those of sdfast.load but the bundle, by their names."""
    options = (
        click.option("--backend", default="auto", show_default=True, help="See `sdfast doctor`."),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N."),
        click.option("--precision", default="auto", show_default=True, help="fp32, bf16 or fp16."),
        click.option("--threads", type=int, default=0, help="Of the CPU. [one on each core]"),
        click.option("--throughput", is_flag=True, help="Rows side by side, one on each core."),
        click.option("--low-memory", is_flag=True, help="Hold one network at a time."),
        click.option(
            "--lora-dir",
            type=click.Path(path_type=Path),
            help="A folder of what <lora:NAME:0.8> in a prompt may name, beside the bundle's own.",
        ),
        click.option(
            *("--tile",), type=int, help="Decode in parts of as many pixels a side. [above 1024]"
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


OPENING = (
    "backend",
    "device",
    "precision",
    "threads",
    "throughput",
    "low_memory",
    "lora_dir",
    "tile",
)
"""The names of those."""


def origin_of(pipe: Pipeline, opening: Mapping[str, Any]) -> Origin:
    """What draws with a pipeline that was opened by these options."""
    from ..provenance import Origin

    return Origin.of(pipe, opening["threads"], opening["tile"], opening["throughput"])


def evaluations(option: click.Parameter, text: str | None) -> Any:
    """--cache of commands that draw nothing."""
    return None if text is None else read("cache", text, option.opts[0])
