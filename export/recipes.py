"""Recipes: how checkpoints of one kind become bundles, as TOML files.

`engines/NAME.toml` come with sdfast; docs/export.md has every key. A recipe says all of it: which
networks, in which precision, written with which graph options, for pictures of which sizes. What a
backend wants otherwise is in its table of the same file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import samplers, schedules
from ..bundle import FAMILIES, Defaults
from ..errors import RecipeError, nearest
from ..networks import CONTROLS, EIGHT_BITS, NETWORKS
from ..ranges import Choice, Flag, Range
from ..request import MAX_STEPS
from ..store import packaged
from .networks import Options
from .toml_values import Value

if TYPE_CHECKING:  # it knows torch, and recipes are listed without
    from .components import Checkpoint

BACKENDS = ("onnxruntime", "openvino", "tensorrt")
WORDS = ("fp32", "fp16", "bf16", "int8")
"""The precisions as recipes and users call them: int8 is the backend's own, and TensorRT has fp8
besides."""
LAYOUTS = ("graph", "checkpoint")
AXES = ("batch", "height", "width")
GRAPH = tuple(f.name for f in fields(Options) if f.name not in AXES)
HOISTED = {"time_projection": "hoisted_time", "context_projection": "hoisted_context"}
LISTED = tuple(name for name in NETWORKS if name not in HOISTED)
"""What a recipe may name; the others follow from its graph options."""

_REST = {"tensorrt": "fp16"}  # of networks beside those of eight bits, else fp32
_LATENT = 8  # pixels a side of one latent pixel, in every family
# What a picture's sides are multiples of: that, doubled wherever the U-Net halves.
_MULTIPLES = {"sd1": 64, "sd2": 64, "sdxl": 32, "sdxl-refiner": 64}
_ENCODERS = {
    "sd1": ("text_encoder",),
    "sd2": ("text_encoder",),
    "sdxl": ("text_encoder", "text_encoder_2"),
    "sdxl-refiner": ("text_encoder_2",),
}
_LEVEL = Range(0, 255, whole=True)
_BATCH, _SIDE = Range(1, 1024, whole=True), Range(_LATENT, 16384, whole=True)
_STEPS, _GUIDANCE = Range(1, MAX_STEPS, whole=True), Range(0, 100)


@dataclass(frozen=True)
class Profile:
    """The sizes along one axis that engines are built for, and the one they are tuned to."""

    minimum: int
    optimum: int
    maximum: int


@dataclass(frozen=True)
class Recipe:
    """How one kind of checkpoint is exported for one backend.

    name: of its file, without the suffix
    family: one of bundle.FAMILIES
    networks: some of sdfast.networks.NETWORKS, in their order; preview_decoder is exported where
        there is a preview to export
    precision: of each network: one of sdfast.networks.PRECISIONS
    layout: weights as the graph reads them ("graph") or as the checkpoint has them ("checkpoint")
    options: of the graphs; `height` and `width` are set where their profile has one size alone
    profiles: "batch" in pictures, "height" and "width" in pixels
    defaults: what a request leaves open; None for a ControlNet or T2I-Adapter alone
    purpose: what it is for, in a few words
    palette: of a ControlNet for semantic maps, each class's colour (red, green, blue)
    """

    name: str
    family: str
    networks: tuple[str, ...]
    precision: Mapping[str, str]
    layout: str
    options: Options
    profiles: Mapping[str, Profile]
    defaults: Defaults | None
    purpose: str = ""
    palette: Mapping[str, tuple[int, int, int]] | None = None


def names() -> tuple[str, ...]:
    """The recipes that come with sdfast."""
    return tuple(sorted(file.stem for file in packaged().glob("*.toml")))


def load(name_or_path: str | Path, backend: str = "onnxruntime") -> Recipe:
    """The recipe of that name or in that .toml file, as one of BACKENDS wants it.

    Raises RecipeError, naming the file, the key and what is allowed, for anything but a whole
    recipe.
    """
    check_backend(backend)
    file = _find(name_or_path)
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{file} cannot be read as TOML ({error}): mend it") from error
    return _recipe(Value(file, "", raw), backend)


def for_checkpoint(checkpoint: Checkpoint, backend: str = "onnxruntime") -> Recipe:
    """The recipe for a checkpoint that is exported without one: that of its family and task, or of
    the family where the task has none of its own. A U-Net that embeds the scale of guidance samples
    as LCM does; a scheduler that gives away a few-step model, as that model does."""
    family, task = checkpoint.family, checkpoint.task
    kind = alone(checkpoint.components) or task
    named = _OF_KIND.get((family, kind)) or _OF_KIND[family, "text"]
    recipe = load(named, backend)
    if task != "text":
        return recipe
    if checkpoint.components["unet"].config.get("time_cond_proj_dim") is not None:
        sampling = load("lcm", backend)
        return (
            sampling if family == sampling.family else replace(recipe, defaults=sampling.defaults)
        )
    few_steps = _OF_FEW_STEPS.get((family, _spacing(checkpoint.scheduler)))
    return recipe if few_steps is None else load(few_steps, backend)


_OF_KIND = {
    ("sd1", "text"): "sd15",
    ("sd1", "inpaint"): "sd15-inpaint",
    ("sd1", "edit"): "instruct-pix2pix",
    ("sd1", "controlnet"): "sd15-controlnet",
    ("sd1", "t2i_adapter"): "sd15-t2i-adapter",
    ("sd2", "text"): "sd21",
    ("sd2", "controlnet"): "sd21-controlnet",
    ("sd2", "t2i_adapter"): "sd21-t2i-adapter",
    ("sdxl", "text"): "sdxl",
    ("sdxl", "controlnet"): "sdxl-controlnet",
    ("sdxl", "t2i_adapter"): "sdxl-t2i-adapter",
    ("sdxl-refiner", "text"): "sdxl-refiner",
}
_OF_FEW_STEPS = {
    ("sd2", "EulerDiscreteScheduler"): "sd-turbo",
    ("sdxl", "EulerAncestralDiscreteScheduler"): "sdxl-turbo",
    ("sdxl", "EulerDiscreteScheduler"): "sdxl-lightning",
}


def _spacing(scheduler: Mapping[str, Any]) -> str | None:
    """The class of a scheduler whose timesteps trail, which few-step models are published with;
    None of others. Models that end in pure noise trail too, and take as many steps as any."""
    few_steps = (
        scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") == "epsilon"
        and not scheduler.get("rescale_betas_zero_snr")
    )
    return scheduler.get("_class_name") if few_steps else None


def require_fit(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raises RecipeError unless the checkpoint has what the recipe makes networks of."""
    wanted, given = (alone(names) for names in (recipe.networks, checkpoint.components))
    problem = None
    if recipe.family != checkpoint.family:
        problem = f"is for {recipe.family}, the checkpoint is {checkpoint.family}"
    elif wanted != given:
        problem = f"is for {_KINDS[wanted]}, the checkpoint is {_KINDS[given]}"
    if problem:
        raise RecipeError(
            f"recipe {recipe.name} {problem}: leave --recipe out, or take another of "
            f"{', '.join(names())}"
        )


_KINDS = {None: "a whole model", "controlnet": "a ControlNet", "t2i_adapter": "a T2I-Adapter"}


def alone(names: Iterable[str]) -> str | None:
    """Which of CONTROLS these networks or components are, if one."""
    return next((name for name in names if name in CONTROLS), None)


def at_precision(recipe: Recipe, precision: str, backend: str) -> Recipe:
    """The recipe, as that backend wants it, with every network in one precision. In eight bits
    those alone that can be: the others are fp32, and for TensorRT as the recipe says, as are those
    in bf16, which the rest of such a network in fp16 would not do for. Raises RecipeError for an
    unknown precision, and one that the backend does not have."""
    check_precision(precision, backend)
    kind = _kind(precision, backend)
    chosen = _at(kind, recipe.networks, "fp32")
    if backend == "tensorrt" and kind in EIGHT_BITS:
        chosen = {
            name: kind if name in EIGHT_BITS[kind] and said != "bf16" else said
            for name, said in recipe.precision.items()
        }
    return replace(recipe, precision=chosen)


def _at(precision: str, networks: tuple[str, ...], rest: str) -> Mapping[str, str]:
    of = EIGHT_BITS.get(precision, networks)
    return {name: precision if name in of else rest for name in networks}


def _kind(precision: str, backend: str) -> str:
    return "int8-fp16" if (precision, backend) == ("int8", "tensorrt") else precision


def check_precision(precision: str, backend: str) -> None:
    """Raises RecipeError unless it is one of WORDS that the backend has."""
    if precision == "fp8" and backend != "tensorrt":
        raise RecipeError(
            f"precision fp8 is for the backend tensorrt alone, not for {backend}: add --backend "
            "tensorrt, or take int8"
        )
    _check_word("precision", precision, _words(backend))


def _words(backend: str) -> tuple[str, ...]:
    return (*WORDS, "fp8") if backend == "tensorrt" else WORDS


def check_backend(backend: str) -> None:
    """Raises RecipeError unless it is one of BACKENDS."""
    _check_word("backend", backend, BACKENDS)


def _check_word(kind: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise RecipeError(
            f"{kind} {word!r} is unknown{nearest(word, known)}; known: {', '.join(known)}"
        )


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if text in names():
        return packaged() / f"{text}.toml"
    file = Path(text).expanduser()
    if file.suffix == ".toml" and file.is_file():
        return file
    raise RecipeError(
        f"there is no recipe {text!r}{nearest(text, names())}; known: {', '.join(names())}; or "
        "give the path of a .toml file"
    )


@dataclass(frozen=True)
class _Form:
    """What a backend may want otherwise."""

    precision: Mapping[str, str]
    layout: str
    graph: Mapping[str, bool]


_FORM = tuple(f.name for f in fields(_Form))


def _recipe(root: Value, backend: str) -> Recipe:
    keys = ("purpose", "family", "networks", *_FORM, "profiles")
    given = root.entries(keys, ("defaults", "backend", "palette"))
    family = given["family"].within(Choice(FAMILIES))
    listed = _networks(given["networks"], family)
    form = _form({key: given[key] for key in _FORM}, listed, None)
    if "backend" in given:
        tables = given["backend"].entries((), BACKENDS)
        forms = {
            name: _form(table.entries((), _FORM), listed, form, name)
            for name, table in tables.items()
        }
        form = forms.get(backend, form)
    profiles = _profiles(given["profiles"], _MULTIPLES[family])
    networks = tuple(
        name
        for name in NETWORKS
        if name in listed or ("unet" in listed and form.graph.get(HOISTED.get(name, "")))
    )
    return Recipe(
        name=root.file.stem,
        family=family,
        networks=networks,
        precision={n: _kind(_of_network(n, form.precision, backend), backend) for n in networks},
        layout=form.layout,
        options=Options(
            **form.graph, height=_fixed(profiles["height"]), width=_fixed(profiles["width"])
        ),
        profiles=profiles,
        defaults=_defaults(root, given.get("defaults"), "unet" in listed),
        purpose=given["purpose"].text(),
        palette=_palette(given["palette"]) if "palette" in given else None,
    )


def _palette(value: Value) -> dict[str, tuple[int, int, int]]:
    if not isinstance(value.value, dict):
        raise value.wrong(f"is {value.value!r}; it must be a table of colours by class")
    for name, colour in value.value.items():
        one = replace(value, key=f"{value.key}.{name}", value=colour)
        if not isinstance(colour, list) or len(colour) != 3 or any(c not in _LEVEL for c in colour):
            raise one.wrong(f"is {colour!r}; it must be [red, green, blue], each from 0 to 255")
    return {name: (colour[0], colour[1], colour[2]) for name, colour in value.value.items()}


def _of_network(name: str, listed: Mapping[str, str], backend: str) -> str:
    """A listed network's precision, or a hoisted one's: the U-Net's, but never of eight bits."""
    if name not in HOISTED:
        return listed[name]
    return _REST.get(backend, "fp32") if listed["unet"] in EIGHT_BITS else listed["unet"]


def _networks(value: Value, family: str) -> tuple[str, ...]:
    whole = (*_ENCODERS[family], "unet", "vae_decoder", "vae_encoder")
    if not isinstance(value.value, list):
        raise value.wrong(f"is {value.value!r}; it must be a list of {', '.join(LISTED)}")
    for name in value.value:
        replace(value, value=name).within(Choice(LISTED))
    found = tuple(name for name in LISTED if name in value.value)
    if len(found) != len(value.value):
        raise value.wrong("names a network twice")
    if one := alone(found):
        if len(found) > 1:
            raise value.wrong(f"has others beside {one}, which is a bundle of its own")
    elif missing := [name for name in whole if name not in found]:
        raise value.wrong(f"lacks {', '.join(missing)}, which a bundle of {family} needs")
    elif odd := [name for name in found if "text" in name and name not in whole]:
        raise value.wrong(f"has {', '.join(odd)}, which {family} does not have")
    return found


def _form(
    given: Mapping[str, Value], listed: tuple[str, ...], base: _Form | None, backend: str = ""
) -> _Form:
    """The base's where it is not given; all of it is given where there is no base. backend: whose
    table it is"""
    form = base or _Form({}, "", {})
    if "precision" in given:
        chosen = _precision(given["precision"], listed, form.precision, backend)
        form = replace(form, precision=chosen)
    if "layout" in given:
        form = replace(form, layout=given["layout"].within(Choice(LAYOUTS)))
    if "graph" in given:
        options = given["graph"].entries(*(((), GRAPH) if base else (GRAPH, ())))
        flags = {name: value.within(Flag()) for name, value in options.items()}
        form = replace(form, graph={**form.graph, **flags})
    return form


def _precision(
    value: Value, listed: tuple[str, ...], base: Mapping[str, str], backend: str
) -> Mapping[str, str]:
    allowed = Choice(_words(backend))
    if isinstance(value.value, str):
        return _at(value.within(allowed), listed, _REST.get(backend, "fp32"))
    given = value.entries(*(((), listed) if base else (listed, ())))
    for name, one in given.items():
        can = EIGHT_BITS.get(one.within(allowed), listed)
        if name not in can:
            raise one.wrong(f"is {one.value}, which {', '.join(can)} alone can be")
    return {**base, **{name: one.within(allowed) for name, one in given.items()}}


def _profiles(value: Value, multiple: int) -> Mapping[str, Profile]:
    found = {}
    for axis, entry in value.entries(AXES).items():
        allowed = _BATCH if axis == "batch" else _SIDE
        sizes = entry.entries(tuple(f.name for f in fields(Profile)))
        profile = Profile(**{name: size.within(allowed) for name, size in sizes.items()})
        if not profile.minimum <= profile.optimum <= profile.maximum:
            raise entry.wrong("must have minimum ≤ optimum ≤ maximum")
        for size in sizes.values():
            if axis != "batch" and size.value % multiple:
                raise size.wrong(f"is {size.value}; it must be a multiple of {multiple}")
        found[axis] = profile
    return found


def _fixed(profile: Profile) -> int | None:
    return profile.optimum // _LATENT if profile.minimum == profile.maximum else None


def _defaults(root: Value, value: Value | None, draws: bool) -> Defaults | None:
    if not draws:
        if value is not None:
            raise value.wrong("must not be there: what controls draws nothing by itself")
        return None
    if value is None:
        raise root.wrong("lacks the key defaults")
    given = value.entries(tuple(f.name for f in fields(Defaults)))
    return Defaults(
        sampler=given["sampler"].known(lambda name: samplers.get(name).name),
        schedule=given["schedule"].known(schedules.get),
        steps=given["steps"].within(_STEPS),
        guidance=float(given["guidance"].within(_GUIDANCE)),
    )
