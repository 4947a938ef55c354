"""Control: pictures that steer a run by ControlNets (arXiv:2302.05543) and T2I-Adapters
(arXiv:2302.08453), each a bundle of its own with task "control"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from . import checks
from .bundle import Bundle
from .canvas import Size, fitted, opened
from .devices.steering import ADAPTER, RESIDUAL
from .errors import BackendUnavailable, InvalidRequest, nearest
from .networks import CONTROLS
from .tensors import Tensor, TensorSpec

_KINDS = {"controlnet": "ControlNet", "t2i_adapter": "T2I-Adapter"}
KEYS = ("bundle", "image", "weight", "start", "end", "preprocess")
PREPROCESSORS = ("canny",)
MOST = 8
_LOW, _HIGH = 100, 200  # of canny's hysteresis, which ControlNets for it were trained with


@dataclass(frozen=True)
class Control:
    """What one ControlNet or T2I-Adapter says.

    bundle: its own, by name or path
    pictures: RGB, of the size that is drawn; one for all images, or one for each
    weight: what it adds is multiplied by, −2…2
    start, end: the part of the steps that it acts in, 0…1
    """

    bundle: str
    pictures: tuple[Image.Image, ...]
    weight: float
    start: float
    end: float

    def acts(self, step: int, steps: int) -> bool:
        """Whether it does in a step, from 0, as diffusers counts."""
        return step / steps >= self.start and (step + 1) / steps <= self.end


def controls(given: object, size: Size, count: int) -> tuple[Control, ...]:
    """Those of a request for `count` images of that size. Raises InvalidRequest."""
    if given is None:
        return ()
    several = [given] if isinstance(given, Mapping) else given
    if not isinstance(several, Sequence) or isinstance(several, str) or not several:
        raise InvalidRequest(f"control is {given!r}; it must be one set of values, or several")
    if len(several) > MOST:
        raise InvalidRequest(f"there are {len(several)} controls; {MOST} are allowed")
    return tuple(_control(one, size, count) for one in several)


def _control(given: object, size: Size, count: int) -> Control:
    values = checks.by_name("control", given)
    if odd := [name for name in values if name not in KEYS]:
        raise InvalidRequest(
            f"control has {odd[0]!r}{nearest(odd[0], KEYS)}; it may have {', '.join(KEYS)}"
        )
    for needed in ("bundle", "image"):
        if values.get(needed) is None:
            raise InvalidRequest(
                f"control has no {needed}: give a bundle for task control and a picture"
            )
    how = values.get("preprocess")
    if how is not None and how not in PREPROCESSORS:
        raise InvalidRequest(
            f"preprocess is {how!r}{nearest(str(how), PREPROCESSORS)}; it must be one of "
            f"{', '.join(PREPROCESSORS)}, or be left out for a picture that is a map already"
        )
    maps = values["image"] if isinstance(values["image"], list | tuple) else [values["image"]]
    if len(maps) not in (1, count):
        raise InvalidRequest(
            f"control has {len(maps)} images; give one for all, or one for each of the {count} "
            "that are drawn"
        )
    start = checks.number("control's start", values.get("start", 0), 0, 1)
    end = checks.number("control's end", values.get("end", 1), 0, 1)
    if start >= end:
        raise InvalidRequest(f"control's start is {start} and its end {end}: start before the end")
    return Control(
        checks.text("control's bundle", _plain(values["bundle"])),
        tuple(_map(one, size, how) for one in maps),
        checks.number("control's weight", values.get("weight", 1), -2, 2),
        start,
        end,
    )


def _map(image: object, size: Size, how: object) -> Image.Image:
    # A map's colours and edges are to stay what they are.
    sharp = Image.Resampling.LANCZOS if how else Image.Resampling.NEAREST
    picture = fitted(opened("control's image", image), size, "crop", sharp)
    return canny(picture) if how == "canny" else picture


def canny(picture: Image.Image) -> Image.Image:
    """White edges on black, by OpenCV."""
    try:
        cv2, numpy = import_module("cv2"), import_module("numpy")
    except ImportError as error:
        raise BackendUnavailable(
            f'canny needs OpenCV ({error}): pip install "sdfast[control]", or give a map of edges'
        ) from None
    edges = cv2.Canny(numpy.asarray(picture), _LOW, _HIGH)
    return Image.fromarray(edges).convert("RGB")


def check(control: Bundle, bundle: Bundle) -> None:
    """Raises InvalidRequest for a bundle that steers nothing, or other models."""
    manifest = control.manifest
    if manifest.task != "control":
        raise InvalidRequest(
            f"bundle {control.name} is for task {manifest.task}; control takes one of task control"
        )
    if "unet_adapters" not in bundle.manifest.networks:
        raise InvalidRequest(
            f"bundle {bundle.name} has no unet_adapters, which takes what ControlNets and "
            "T2I-Adapters add: export it again by a recipe that lists unet_adapters"
        )
    added = manifest.networks[name := kind(control)].outputs
    taken = absent(bundle)
    if name == "t2i_adapter":
        if not any(one.startswith(ADAPTER) for one in taken):
            raise InvalidRequest(
                f"bundle {bundle.name} is of an older sdfast, whose unet_adapters takes nothing of "
                "T2I-Adapters: export it again"
            )
        fits = manifest.family == bundle.manifest.family and all(
            one in taken and spec.shape[1] == taken[one].shape[1] for one, spec in added.items()
        )
    else:
        width = manifest.networks[name].inputs["context"].shape[-1]
        fits = width == bundle.context.width and set(added) == {
            one for one in taken if one.startswith(RESIDUAL)
        }
    if not fits:
        raise InvalidRequest(
            f"bundle {control.name} is a {_KINDS[name]} for models of family {manifest.family}, or "
            f"of other sizes than {bundle.name}: use one that was trained for it"
        )
    if any(spec.shape[1] is None for spec in added.values()):
        raise InvalidRequest(f"bundle {control.name} is of an older sdfast: export it again")


def kind(control: Bundle) -> str:
    """The network of a bundle that steers, one of networks.CONTROLS."""
    return next(name for name in CONTROLS if name in control.manifest.networks)


def absent(bundle: Bundle) -> dict[str, TensorSpec]:
    """What unet_adapters takes of ControlNets and T2I-Adapters, by name: where no one acts, zeros
    whose open sides are 1."""
    inputs = bundle.manifest.networks["unet_adapters"].inputs
    return {name: spec for name, spec in inputs.items() if name.startswith((RESIDUAL, ADAPTER))}


def check_palette(picture: Image.Image, bundle: Bundle) -> None:
    """Raises InvalidRequest for a semantic map with a colour that is no class of the ControlNet."""
    if (palette := bundle.manifest.palette) is None:
        return
    found = picture.getcolors(picture.width * picture.height) or []
    known = set(palette.values())
    if odd := [colour for _, colour in found if colour not in known]:
        classes = ", ".join(f"{name} {colour}" for name, colour in palette.items())
        raise InvalidRequest(
            f"control's image has the colour {odd[0]}, which is no class of bundle {bundle.name}; "
            f"its classes are {classes}: paint the map in these, without smooth edges"
        )


def added(control: Bundle, rows: int, sides: tuple[int, int]) -> dict[str, Tensor]:
    """Memory for what a ControlNet or T2I-Adapter adds, by name, for latents of these sides."""
    name = kind(control)
    outputs = control.manifest.networks[name].outputs
    levels = _of_adapter(outputs) if name == "t2i_adapter" else _of_controlnet(control, outputs)
    return {
        name: Tensor.empty(
            (rows, spec.shape[1] or 1, *(side >> levels[name] for side in sides)), "f32"
        )
        for name, spec in outputs.items()
    }


def _of_controlnet(control: Bundle, outputs: Iterable[str]) -> dict[str, int]:
    """How often the sides of each are halved: a U-Net of b blocks gives as many residuals at each
    of its b levels."""
    blocks = (control.sizes.multiple // control.sizes.scale).bit_length()
    numbered = len(list(outputs)) - 1
    levels = {f"{RESIDUAL}{k}": k * blocks // numbered for k in range(numbered)}
    return {**levels, f"{RESIDUAL}mid": blocks - 1}


def _of_adapter(outputs: Iterable[str]) -> dict[str, int]:
    """The same, which their names tell: adapter_PLACE_LEVEL."""
    return {name: int(name.rpartition("_")[2]) for name in outputs}


Weights = Callable[[float], Sequence[float]]
"""weights(timestep): of each control."""


def weights(
    given: Sequence[Control], sigmas: Sequence[float], timestep: Callable[[float], float]
) -> Weights:
    """What each control's additions are multiplied by at a timestep of the run."""
    begins = [timestep(sigma) for sigma in sigmas[:-1]]

    def at(t: float) -> list[float]:
        # A step's evaluations are from its own level down to the next one's, and t is a float32.
        step = max(sum(begin >= t - 1e-3 for begin in begins) - 1, 0)
        return [one.weight if one.acts(step, len(begins)) else 0.0 for one in given]

    return at


def of_image(given: Any, image: int) -> Any:
    """A request's control as one of its images alone has it, by its number."""
    if given is None:
        return None

    def own(maps: Any) -> Any:
        several = isinstance(maps, list | tuple) and len(maps) > 1
        return maps[image] if several else maps

    several = [given] if isinstance(given, Mapping) else given
    return tuple({**one, "image": own(one["image"])} for one in several)


def told(given: Any, tell: Callable[[Any], Any]) -> Any:
    """A request's control for JSON, with its pictures as `tell` tells them; what is none stays as
    it is, for `controls` to refuse."""
    several = [given] if isinstance(given, Mapping) else given
    if not isinstance(several, list | tuple) or not all(isinstance(o, Mapping) for o in several):
        return given

    def maps(image: Any) -> Any:
        return [tell(one) for one in image] if isinstance(image, list | tuple) else tell(image)

    return [
        {**one, "bundle": _plain(one.get("bundle")), "image": maps(one.get("image"))}
        for one in several
    ]


def _plain(bundle: Any) -> Any:
    """A bundle may be given by a path, as to sdfast.load."""
    return str(bundle) if isinstance(bundle, Path) else bundle
