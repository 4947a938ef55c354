"""Sweeps: what a batch varies, and the grids that its pictures make."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from .errors import InvalidRequest
from .prompt_files import Row
from .request import Request
from .sheets import Grid

REPLACED = "replace"


@dataclass(frozen=True)
class Axis:
    """What a sweep varies.

    name: a parameter of a request; or one of a sampler's or schedule's own, with `owner`
        sampler_parameters or schedule_parameters; or REPLACED: then the first of the values is a
        part of the prompts, which each of them takes the place of
    """

    name: str
    values: tuple[Any, ...]
    owner: str | None = None

    def apply(self, value: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a request with that value. Raises InvalidRequest."""
        if self.name == REPLACED:
            word, prompt = str(self.values[0]), str(parameters.get("prompt", ""))
            if word not in prompt:
                raise InvalidRequest(f"the prompt {prompt!r} has no {word!r} to replace")
            return {**parameters, "prompt": prompt.replace(word, str(value))}
        if self.owner is None:
            return {**parameters, self.name: value}
        return {**parameters, self.owner: {**parameters.get(self.owner, {}), self.name: value}}


@dataclass(frozen=True)
class Picture:
    """One picture of a batch.

    row: its row's number
    place: the number of its value on every axis
    image: its number among the images of one request
    request: of it alone, with every default filled in
    name: of its file, without suffix
    """

    row: int
    place: tuple[int, ...]
    image: int
    request: Request
    name: str


def swept(lists: Mapping[str, Any]) -> tuple[dict[str, Any], list[Axis]]:
    """What all requests share, and the axes, in the order in which they are given.

    lists: by parameter a tuple of its values; of a sampler's and schedule's own the tuples by name
    """
    shared: dict[str, Any] = {}
    axes: list[Axis] = []
    for name, values in lists.items():
        if isinstance(values, Mapping):
            axes += [Axis(own, each, name) for own, each in values.items() if len(each) > 1]
            if single := {own: each[0] for own, each in values.items() if len(each) == 1}:
                shared[name] = single
        elif len(values) > 1:
            axes.append(Axis(name, values))
        elif values:
            shared[name] = values[0]
    return shared, axes


def told(axes: Sequence[Axis], place: Sequence[int]) -> list[str]:
    """The place in words: the name and value of every axis."""
    return [_told(axis, k) for axis, k in zip(axes, place, strict=True)]


def _told(axis: Axis, k: int) -> str:
    value = _written(axis.values[k])
    return value if axis.name == REPLACED else f"{axis.name} {value}"


def _written(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_written(own)}" for name, own in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row(row: Row) -> str:
    """What a row gives, in words: its prompt first."""
    others = (f"{n} {_written(v)}" for n, v in row.values.items() if n != "prompt")
    return ", ".join([str(row.values.get("prompt", "")), *others])


def caption(picture: Picture, axes: Sequence[Axis]) -> str:
    """What tells a picture from others."""
    return ", ".join(
        [picture.request.prompt, *told(axes, picture.place), f"seed {picture.request.seed}"]
    )


@dataclass(frozen=True)
class _Side:
    """What the columns of grids, their rows, or the grids themselves differ in: labels, and the
    number of the one that a picture has."""

    labels: Sequence[str]
    of: Callable[[Picture], int]


def grids(
    pictures: Sequence[Picture],
    rows: Sequence[Row],
    axes: Sequence[Axis],
    file: Callable[[Picture], Path | None],
) -> Iterator[Grid]:
    """The grids of a sweep; none where nothing is swept. The first axis is that of the columns, the
    second that of the rows; after the axes come the batch's rows and the images of a request. Of
    each place on what is left there is a grid.

    file: None of a picture that could not be drawn
    """
    if not axes:
        return
    sides = [_axis(number, axis) for number, axis in enumerate(axes)]
    sides += [_Side([_row(row) for row in rows], attrgetter("row"))] if len(rows) > 1 else []
    sides += _images(pictures)
    across, down, *others = sides if len(sides) > 1 else [*sides, _Side([""], lambda _: 0)]
    cells: dict[tuple[int, ...], dict[tuple[int, int], Path]] = {}
    for picture in pictures:
        if (found := file(picture)) is not None:
            page = cells.setdefault(tuple(side.of(picture) for side in others), {})
            page[across.of(picture), down.of(picture)] = found
    for place in itertools.product(*(range(len(side.labels)) for side in others)):
        titles = [_row(row) for row in rows if len(rows) == 1]
        titles += [side.labels[k] for side, k in zip(others, place, strict=True)]
        yield Grid(tuple(titles), tuple(across.labels), tuple(down.labels), cells.get(place, {}))


def _axis(number: int, axis: Axis) -> _Side:
    labels = [_told(axis, k) for k in range(len(axis.values))]
    return _Side(labels, lambda picture: picture.place[number])


def _images(pictures: Sequence[Picture]) -> list[_Side]:
    """The images of one request, labelled by their seeds where those of all requests have the same;
    nothing where all have one image."""
    seeds: dict[int, set[int]] = {}
    for picture in pictures:
        seeds.setdefault(picture.image, set()).add(picture.request.seed or 0)
    if len(seeds) == 1:
        return []
    labels = [
        f"seed {min(seeds[image])}" if len(seeds[image]) == 1 else f"image {image + 1}"
        for image in range(len(seeds))
    ]
    return [_Side(labels, attrgetter("image"))]
