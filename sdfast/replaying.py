"""Replaying: a picture's request drawn again, and compared with the picture bit for bit.

What can differ: nothing, by ONNX Runtime with the same bundle. Other backends round as suits the
machine, their version and how many pictures are drawn together. So where a picture that is drawn
alone is another one, it is drawn among those that it was drawn with; and a difference is told
beside all that is not as it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from . import images, store
from .canvas import opened, told
from .errors import CannotReplay, SdfastError
from .images import Carried
from .pipeline import Callback, Pipeline, load
from .provenance import Inputs, Origin, Provenance, digest, inputs, lora_folders
from .request import MAX_SEED, Request


@dataclass(frozen=True)
class Difference:
    """How far two pictures of one size are apart. pixels: that differ, of as many; largest, mean:
    difference of their levels, 0…255."""

    pixels: int
    of: int
    largest: int
    mean: float


@dataclass(frozen=True)
class Change:
    """What is not as it was when the picture was drawn."""

    name: str
    then: str
    now: str


@dataclass(frozen=True)
class Replayed:
    """What came of it.

    same: what was drawn again is the picture, bit for bit
    lossy: the file's format where it does not keep pixels: then `same` is about those that were
        drawn, whose digest it has
    altered: the file does not have the pixels that were drawn; None where nobody knows
    difference: None where there is nothing to compare: a lossy file, or one of another size
    changes: None for a picture of before these were told
    now, together: what drew it again, and how many with it
    """

    same: bool
    lossy: str | None
    altered: bool | None
    difference: Difference | None
    changes: tuple[Change, ...] | None
    now: Origin
    together: int

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)


def replay(
    file: Path,
    *,
    bundle: str | Path | None = None,
    backend: str | None = None,
    image: Path | None = None,
    mask: Path | None = None,
    lora_dir: Path | None = None,
    callback: Callback | None = None,
) -> Replayed:
    """Draws a picture's request again and compares all pixels.

    bundle: where it is, and where it may be another one; without it, the bundle of the picture's
        name must have its digest
    backend: in place of the one that drew the picture
    image, mask: what it started from, where that is not where the request says
    Raises CannotReplay, or what the request or opening the bundle raises.
    """
    carried = images.read(file)
    if carried.lossy is not None and carried.pixels is None:
        raise CannotReplay(
            f"{file} is a {carried.lossy}, which does not keep pixels as they were, and has no "
            "digest of them: replay PNG files, or pictures of a newer sdfast"
        )
    request = _supplied(file, carried, image, mask)
    pipe, now = _opened(file, carried, bundle, backend, lora_dir)
    found = inputs(request, lora_folders(pipe.bundle, lora_dir))
    if carried.made is not None:
        _check(file, carried.made.inputs, found)
    (alone,) = pipe(replace(request, count=1), callback=callback).images
    outcome = compared(file, carried, alone, now)
    if not outcome.same and carried.made is not None and carried.made.together > 1:
        together, place = carried.made.together, carried.made.place
        first = ((request.seed or 0) - place) % (MAX_SEED + 1)
        several = pipe(replace(request, seed=first, count=together), callback=callback).images
        among = compared(file, carried, several[place], now, together)
        outcome = among if among.same else outcome
    pipe.close()
    return outcome


def _supplied(file: Path, carried: Carried, image: Path | None, mask: Path | None) -> Request:
    """The request with its pictures, those that are given in the places of its own."""
    request = carried.request
    return replace(
        request,
        image=_picture(file, carried, "image", request.image, image, "RGB"),
        mask=_picture(file, carried, "mask", request.mask, mask, "L"),
    )


def _picture(
    file: Path, carried: Carried, name: str, own: Any, given: Path | None, mode: str
) -> Image.Image | None:
    """The picture that it was drawn from."""
    if own is None and given is None:
        return None
    if own is None:
        raise CannotReplay(f"{file} was drawn without {name}: leave out --{name}")
    shown = str(own if given is None else given)
    shown = shown if len(shown) < 4096 else f"{shown[:57]}…"  # a data URL
    try:
        found = opened(name, own if given is None else given, mode)
    except SdfastError as error:
        raise CannotReplay(
            f"{file} was drawn from {name} {shown}, which cannot be read here: give it with "
            f"--{name} FILE"
        ) from error
    known = None if carried.made is None else carried.made.inputs.pictures.get(name)
    if known not in (None, told(found)):
        raise CannotReplay(
            f"{file} was drawn from another {name} than {shown} is now: give the one that it was "
            f"with --{name} FILE"
        )
    return found


def _opened(
    file: Path,
    carried: Carried,
    bundle: str | Path | None,
    backend: str | None,
    lora_dir: Path | None,
) -> tuple[Pipeline, Origin]:
    """A pipeline like the one that drew it, and what it is."""
    then = None if carried.made is None else carried.made.origin
    folder = store.find(bundle or carried.model)
    if then is not None and bundle is None and digest(folder) != then.bundle_digest:
        raise CannotReplay(
            f"{file} was drawn by another bundle {carried.model} (sha256 {then.bundle_digest[:12]}…"
            f" of its bundle.json) than {folder} is: give the folder of the one that it was with "
            "--bundle"
        )
    if then is None:
        pipe = load(folder, backend or "auto", lora_dir=lora_dir)
        return pipe, Origin.of(pipe)
    same = backend in (None, then.backend)
    pipe = load(
        folder,
        backend or then.backend,
        then.device.partition(":")[0] if same else "auto",
        then.threads,
        precision=then.precision if same else "auto",
        throughput=then.throughput,
        tile=then.tile,
        lora_dir=lora_dir,
    )
    return pipe, Origin.of(pipe, then.threads, then.tile, then.throughput)


def _check(file: Path, then: Inputs, now: Inputs) -> None:
    """Raises CannotReplay where a request is drawn from other things than it was."""
    for kind, one in (("pictures", "picture"), ("bundles", "ControlNet"), ("loras", "LoRA")):
        known, found = getattr(then, kind), getattr(now, kind)
        for name in known:
            if found.get(name) != known[name]:
                raise CannotReplay(
                    f"{file} was drawn with another {one} {name} (sha256 "
                    f"{known[name].removeprefix('sha256:')[:12]}…) than is here: put the one that "
                    "it was in its place"
                )


def compared(
    file: Path, carried: Carried, drawn: Image.Image, now: Origin, together: int = 1
) -> Replayed:
    """A picture beside what was drawn again, among as many."""
    with Image.open(file) as image:
        kept = image.convert("RGB")
    again = None if carried.pixels is None else told(drawn) == carried.pixels
    altered = None if carried.pixels is None else told(kept) != carried.pixels
    difference = None
    if carried.lossy is None and kept.size == drawn.size:
        difference = differing(kept, drawn)
    return Replayed(
        same=bool(again) if carried.lossy else difference is not None and difference.pixels == 0,
        lossy=carried.lossy,
        altered=None if carried.lossy else altered,
        difference=difference,
        changes=None if carried.made is None else changes(carried.made, now, together),
        now=now,
        together=together,
    )


def differing(one: Image.Image, other: Image.Image) -> Difference:
    """Of two pictures in RGB of one size."""
    apart = ImageChops.difference(one, other)
    red, green, blue = apart.split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue).histogram()
    total = sum(level % 256 * count for level, count in enumerate(apart.histogram()))
    pixels = one.width * one.height
    largest = max(level for level, count in enumerate(most) if count)
    return Difference(pixels - most[0], pixels, largest, total / (3 * pixels))


def changes(made: Provenance, now: Origin, together: int) -> tuple[Change, ...]:
    """What is not as it was."""
    then = made.origin
    pairs = [(f.name, getattr(then, f.name), getattr(now, f.name)) for f in fields(Origin)]
    pairs.append(("together", made.together, together))
    return tuple(
        Change(name.replace("_", " "), _told(was), _told(is_now))
        for name, was, is_now in pairs
        if was != is_now and was not in ("", ())  # which the file does not tell
    )


def _told(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
