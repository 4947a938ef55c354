"""Batches: many requests into one folder of pictures, in any number of goes.

A batch is its rows times the axes of a sweep. Every picture has a name that is a digest of all that
shapes it: its request with nothing left open, the bundle, the precision. So a run that was stopped
goes on where it stopped, a longer list draws what is new alone, and batches may share a folder.

Rows without a seed have seed 0, and not a random one, which no second run would find again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from PIL import Image

from . import canvas, images, store
from .errors import Cancelled, InvalidRequest, OutputError, SdfastError
from .prompt_files import Row
from .provenance import Origin, digest_of
from .request import Request, Resolved, resolve
from .request_text import overlaid
from .sweeps import Axis, Picture, told

if TYPE_CHECKING:
    from .pipeline import Callback, Pipeline

TOGETHER = 8  # pictures that differ in their seed alone, drawn as one request
_LONGEST_SLUG = 40
_T = TypeVar("_T")
Add: TypeAlias = Callable[[str, Image.Image, Request, Mapping[str, float], int, int], _T]
"""As picture_folder.Folder.add."""


@dataclass(frozen=True)
class Failure:
    """What could not be drawn, and why."""

    place: str
    reason: str


def expand(
    rows: Sequence[Row],
    defaults: Mapping[str, Any],
    axes: Sequence[Axis],
    pipe: Pipeline,
    origin: Origin,
) -> tuple[list[Picture], list[Failure]]:
    """The pictures of a batch, and the requests that cannot be drawn.

    defaults: what holds where rows do not say otherwise
    Raises InvalidRequest for a row that gives what an axis varies, and where nothing can be drawn.
    """
    _check(rows, axes)
    pictures: list[Picture] = []
    failures: list[Failure] = []
    for number, row in enumerate(rows):
        base = overlaid({"seed": 0, **defaults}, row.values)
        for place in itertools.product(*(range(len(axis.values)) for axis in axes)):
            try:
                request = _resolved(base, axes, place, pipe)
                files, of_images = _files(request, pipe), _by_content(request)
            except SdfastError as error:
                failures.append(Failure(", ".join([row.place, *told(axes, place)]), str(error)))
                continue
            made_by = {"bundle": origin.bundle_digest, "precision": origin.precision, **files}
            for image, values in enumerate(of_images):
                name = _name(request.prompt, {"request": values, **made_by})
                single = request.as_request().alone(image)
                pictures.append(Picture(number, place, image, single, name))
    if failures and not pictures:
        raise InvalidRequest(f"{failures[0].place}: {failures[0].reason}")
    return pictures, failures


def _check(rows: Sequence[Row], axes: Sequence[Axis]) -> None:
    for row, axis in itertools.product(rows, axes):
        given = row.values if axis.owner is None else row.values.get(axis.owner)
        if isinstance(given, Mapping) and axis.name in given:
            raise InvalidRequest(
                f"{row.place} gives {axis.name}, which the sweep varies: leave one of them out"
            )


def _resolved(
    parameters: Mapping[str, Any],
    axes: Sequence[Axis],
    place: Sequence[int],
    pipe: Pipeline,
) -> Resolved:
    for axis, k in zip(axes, place, strict=True):
        parameters = axis.apply(axis.values[k], parameters)
    return resolve(Request.from_dict(parameters), pipe.bundle, pipe.precision)


def _name(prompt: str, shaped_by: Mapping[str, Any]) -> str:
    """The prompt's beginning, for people, and the digest."""
    slug = images.stem(prompt)[:_LONGEST_SLUG].rstrip("-")
    return "-".join(filter(None, (slug, digest_of(shaped_by)[:16])))


def _by_content(request: Resolved) -> list[dict[str, Any]]:
    """Of each image alone the request's values, with its pictures' pixels in the place of their
    paths."""
    full, given = request.as_request(), {"image": request.image, "mask": request.mask}
    pixels = {
        name: canvas.told(canvas.opened(name, value))
        for name, value in given.items()
        if value is not None
    }
    maps = [[canvas.told(picture) for picture in one.pictures] for one in request.controls]
    found = []
    for image in range(request.count):
        values = full.alone(image).to_dict() | pixels
        for k, own in enumerate(maps):
            values["control"][k]["image"] = [own[image % len(own)]]
        found.append(values)
    return found


def _files(request: Resolved, pipe: Pipeline) -> dict[str, Any]:
    """What else shapes it, where there is any: the LoRA that its prompts name, and the ControlNets'
    bundles, by their content. Raises InvalidRequest, LoraError or BundleError."""
    passes = [request] if request.second is None else [request, request.second]
    loras = [pipe.loras(one.prompt) for one in passes]
    bundles = [digest_of(asdict(store.load(one.bundle).manifest)) for one in request.controls]
    return ({"loras": loras} if any(loras) else {}) | ({"controls": bundles} if bundles else {})


# What pictures of one plan may differ in, but for whether there is guidance.
_WORDS = ("prompt", "negative_prompt", "guidance", "guidance_rescale", "guidance_interval", "seed")


def runs(pictures: Iterable[Picture]) -> list[list[Picture]]:
    """Every picture once, as runs of the pipeline: those that differ in their seed alone and follow
    each other by it are one, up to TOGETHER.

    Runs of one shape come after one another, and among them those of one plan, since a pipeline
    keeps few plans and backends compile for shapes: with OpenVINO 120 pictures of 3 sizes, 10
    programs and 4 prompts took several times as long in the order of the prompts.
    """
    once = list({picture.name: picture for picture in pictures}.values())
    given = [picture.request.to_dict() for picture in once]
    for request in given:
        request["guided"] = request["guidance"] != 1
    shapes = _ranks([request["width"], request["height"], request["guided"]] for request in given)
    plans = _ranks(_without(_WORDS, request) for request in given)
    alike = _ranks(_without(("seed",), request) for request in given)
    ranked = sorted(
        zip(shapes, plans, alike, once, strict=True),
        key=lambda ranks: (*ranks[:3], ranks[3].request.seed or 0),
    )
    found: list[list[Picture]] = []
    before = (-1, -1)  # the rank and the seed of the picture before
    for _, _, rank, picture in ranked:
        seed = picture.request.seed or 0
        if before == (rank, seed - 1) and len(found[-1]) < TOGETHER:
            found[-1].append(picture)
        else:
            found.append([picture])
        before = (rank, seed)
    return found


def _ranks(keys: Iterable[Any]) -> list[int]:
    """The number of each key among the different ones, in the order in which they come."""
    first: dict[str, int] = {}
    return [first.setdefault(digest_of(key), len(first)) for key in keys]


def _without(names: Sequence[str], request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name not in names}


def draw(
    planned: Iterable[Sequence[Picture]],
    pipe: Pipeline,
    add: Add[_T],
    callback: Callable[[Sequence[Picture]], Callback | None] = lambda _run: None,
) -> Iterator[list[_T] | Failure]:
    """Draws run after run: for each what `add` makes of its pictures, or why there are none.

    add: that of a folder
    callback: gives the run's callback
    Raises OutputError, which the next run would meet as well, and Cancelled.
    """
    for run in planned:
        first = run[0].request
        try:
            result = pipe(replace(first, count=len(run)), callback=callback(run))
        except (Cancelled, OutputError):
            raise
        except SdfastError as error:
            if len(run) > 1:  # one by one they may fit into memory
                yield from draw([[picture] for picture in run], pipe, add, callback)
            else:
                yield Failure(f"{first.prompt!r}, seed {first.seed}", str(error))
            continue
        yield [
            add(p.name, image, p.request, result.timings, len(run), place)
            for place, (p, image) in enumerate(zip(run, result.images, strict=True))
        ]
