"""Batches: many requests into one folder of pictures, in any number of goes.

A batch is its rows times the axes of a sweep. Every picture has a name that is a digest of all that
shapes it: its request with nothing left open, the bundle, the precision. So a run that was stopped
goes on where it stopped, a longer list draws what is new alone, and batches may share a folder.

Rows without a seed have seed 0, and not a random one, which no second run would find again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import canvas, images
from .errors import Cancelled, InvalidRequest, OutputError, SdfastError
from .picture_folder import Folder, Record
from .prompt_files import Row
from .provenance import Origin, digest_of
from .request import Request, Resolved, resolve
from .request_text import overlaid
from .sweeps import Axis, Picture, told

if TYPE_CHECKING:
    from .bundle import Bundle
    from .pipeline import Callback, Pipeline

TOGETHER = 8  # pictures that differ in their seed alone, drawn as one request
_LONGEST_SLUG = 40


@dataclass(frozen=True)
class Failure:
    """What could not be drawn, and why."""

    place: str
    reason: str


def expand(
    rows: Sequence[Row],
    defaults: Mapping[str, Any],
    axes: Sequence[Axis],
    bundle: Bundle,
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
                request = _resolved(base, axes, place, bundle, origin.precision)
            except SdfastError as error:
                failures.append(Failure(", ".join([row.place, *told(axes, place)]), str(error)))
                continue
            for image, seed in enumerate(request.seeds):
                single = replace(request, seed=seed, count=1)
                pictures.append(Picture(number, place, image, single, _name(single, origin)))
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
    bundle: Bundle,
    precision: str,
) -> Resolved:
    for axis, k in zip(axes, place, strict=True):
        parameters = axis.apply(axis.values[k], parameters)
    return resolve(Request.from_dict(parameters), bundle, precision)


def _name(request: Resolved, origin: Origin) -> str:
    """The prompt's beginning, for people, and the digest."""
    shaped_by = {
        "request": _by_content(request),
        "bundle": origin.bundle_digest,
        "precision": origin.precision,
    }
    slug = images.stem(request.prompt)[:_LONGEST_SLUG].rstrip("-")
    return "-".join(filter(None, (slug, digest_of(shaped_by)[:16])))


# What pictures of one plan may differ in, but for whether there is guidance.
def _by_content(request: Resolved) -> dict[str, Any]:
    """A request's values with its pictures' pixels in the place of their paths."""
    values = request.as_request().to_dict()
    for name, given in (("image", request.image), ("mask", request.mask)):
        if given is not None:
            values[name] = canvas.told(canvas.opened(name, given))
    if request.controls:
        maps = [[canvas.told(p) for p in one.pictures] for one in request.controls]
        values["control"] = [
            {**v, "image": m} for v, m in zip(values["control"], maps, strict=True)
        ]
    return values


_WORDS = ("prompt", "negative_prompt", "guidance", "guidance_rescale", "guidance_interval", "seed")


def runs(pictures: Iterable[Picture]) -> list[list[Picture]]:
    """Every picture once, as runs of the pipeline: those that differ in their seed alone and follow
    each other by it are one, up to TOGETHER.

    Runs of one shape come after one another, and among them those of one plan, since a pipeline
    keeps few plans and backends compile for shapes: with OpenVINO 120 pictures of 3 sizes, 10
    programs and 4 prompts took several times as long in the order of the prompts.
    """
    once = list({picture.name: picture for picture in pictures}.values())
    given = [picture.request.as_request().to_dict() for picture in once]
    for request in given:
        request["guided"] = request["guidance"] != 1
    shapes = _ranks([request["width"], request["height"], request["guided"]] for request in given)
    plans = _ranks(_without(_WORDS, request) for request in given)
    alike = _ranks(_without(("seed",), request) for request in given)
    ranked = sorted(
        zip(shapes, plans, alike, once, strict=True),
        key=lambda ranks: (*ranks[:3], ranks[3].request.seed),
    )
    found: list[list[Picture]] = []
    before = (-1, -1)  # the rank and the seed of the picture before
    for _, _, rank, picture in ranked:
        seed = picture.request.seed
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
    folder: Folder,
    callback: Callable[[Sequence[Picture]], Callback | None] = lambda _run: None,
) -> Iterator[list[Record] | Failure]:
    """Draws run after run: for each the lines of its pictures, or why there are none.

    callback: gives the run's callback
    Raises OutputError, which the next run would meet as well, and Cancelled.
    """
    for run in planned:
        first = run[0].request
        try:
            result = pipe(replace(first, count=len(run)).as_request(), callback=callback(run))
        except (Cancelled, OutputError):
            raise
        except SdfastError as error:
            if len(run) > 1:  # one by one they may fit into memory
                yield from draw([[picture] for picture in run], pipe, folder, callback)
            else:
                yield Failure(f"{first.prompt!r}, seed {first.seed}", str(error))
            continue
        yield [
            folder.add(p.name, image, p.request.as_request(), result.timings, len(run))
            for p, image in zip(run, result.images, strict=True)
        ]
