"""Which engines TensorRT builds of a network, and which of those in the store serves a shape.

A dynamic engine takes every shape between two and is tuned to one of them; away from that it loses
a quarter to a third of its speed. So a network has a bucket of static engines, for the shapes that
are drawn most, and a dynamic one for all others.

In the store each engine is an entry of its own, under a key of everything that shapes it. Shapes
alone do not tell which ranges were asked for: a catalogue, one entry for each network, lists its
plans, and is written anew when some are added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from pathlib import Path

from ..devices.cuda import Keep
from ..errors import BackendUnavailable
from ..graph_tensors import Port
from ..records import parsed

Shape = tuple[int, ...]
HARDWARE = ("this", "same-capability", "ampere-or-later")
PLAN, CATALOGUE = "network.plan", "plans.json"
# A time table has G rows for each evaluation, up to the next power of two; a sampler without one
# embeds the time of G·B rows.
_TIMES = (1, 64, 4096)


@dataclass(frozen=True)
class Range:
    """The values of a side, and the one that is tuned to."""

    minimum: int
    optimum: int
    maximum: int

    @property
    def bucket(self) -> tuple[int, ...]:
        """The minimum, doubled up to the maximum, and that."""
        found = [self.minimum]
        while found[-1] < self.maximum:
            found.append(min(2 * found[-1], self.maximum))
        return tuple(found)

    def over(self, scale: int) -> Range:
        """The same in units of `scale`."""
        return Range(self.minimum // scale, self.optimum // scale, self.maximum // scale)


@dataclass(frozen=True)
class Pictures:
    """What is drawn: pictures at once, their sides in pixels.

    scale: pixels a side of a latent; tokens: of a context
    halves: rows of the U-Net for each picture: 2 with guidance, 1 without
    """

    batch: Range
    height: Range
    width: Range
    scale: int
    tokens: int
    halves: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """The shapes of a network's inputs that an engine takes, by name: the least, the one that it
    is tuned to, the largest."""

    least: dict[str, Shape]
    best: dict[str, Shape]
    largest: dict[str, Shape]

    @property
    def static(self) -> bool:
        return self.least == self.largest

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        return shapes.keys() == self.least.keys() and all(
            len(shape) == len(self.least[name])
            and all(
                low <= side <= high
                for low, side, high in zip(self.least[name], shape, self.largest[name], strict=True)
            )
            for name, shape in shapes.items()
        )

    def __str__(self) -> str:
        points = (self.best,) if self.static else (self.least, self.best, self.largest)
        return ", ".join(
            f"{name} {' … '.join('×'.join(map(str, point[name])) for point in points)}"
            for name in self.best
        )


@dataclass(frozen=True)
class Form:
    """What a plan can do beside running here.

    refittable: its weights can be replaced; stripped: it holds none, and takes the bundle's when it
        is opened
    version_compatible: later TensorRTs of the same major version run it
    hardware: one of HARDWARE: the GPUs that run it
    """

    refittable: bool = False
    stripped: bool = False
    version_compatible: bool = False
    hardware: str = "this"

    def __post_init__(self) -> None:
        if self.hardware not in HARDWARE:
            raise BackendUnavailable(
                f"hardware {self.hardware!r} is unknown; use one of {', '.join(HARDWARE)}"
            )


@dataclass(frozen=True)
class Host:
    """What plans are built with and for. architecture: as sm_90."""

    version: str
    gpu: str
    architecture: str

    @property
    def _capability(self) -> int:
        return int(self.architecture.removeprefix("sm_"))

    def runs(self, plan: Plan) -> bool:
        there, form = plan.host, plan.form
        same_version = self.version == there.version or (
            form.version_compatible and self._major == there._major and self._number > there._number
        )
        return (
            same_version
            and {
                "this": (self.gpu, self.architecture) == (there.gpu, there.architecture),
                "same-capability": self.architecture == there.architecture,
                "ampere-or-later": self._capability >= 80,
            }[form.hardware]
        )

    @property
    def _number(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split(".") if part.isdigit())

    @property
    def _major(self) -> int:
        return self._number[0]


@dataclass(frozen=True)
class Plan:
    """One engine: what it takes, what it can do, where it was built."""

    profile: Profile
    form: Form
    host: Host

    @property
    def key(self) -> dict[str, str]:
        """What shapes it, beside the network."""
        return {
            "backend": "tensorrt",
            "version": self.host.version,
            "device": f"{self.host.gpu}, {self.host.architecture}",
            "profile": json.dumps(asdict(self.profile)),
            "form": json.dumps(asdict(self.form)),
        }


def serving(plans: Iterable[Plan], shapes: Mapping[str, Shape], host: Host) -> list[Plan]:
    """Those that take the shapes on this host, the likely fastest first: static ones before
    dynamic ones, what was built for this host alone before what runs on others too."""
    found = [p for p in plans if p.profile.takes(shapes) and host.runs(p)]
    return sorted(found, key=lambda p: (not p.profile.static, p.form != Form(), p.host != host))


@dataclass(frozen=True)
class _Catalogue:
    plans: tuple[Plan, ...]


_LISTED = {"backend": "tensorrt", "kind": "catalogue"}


def listed(keep: Keep) -> tuple[Plan, ...]:
    """The network's plans of which the store knows, the latest first."""
    folder = stored(keep, _LISTED)
    if folder is None:
        return ()
    try:
        raw = json.loads((folder / CATALOGUE).read_text(encoding="utf-8"))
        found: _Catalogue = parsed(_Catalogue, raw)
    except (OSError, ValueError):  # of another version of sdfast: as if there were none
        return ()
    return found.plans


def enlist(keep: Keep, renew: Keep, plans: Sequence[Plan]) -> None:
    """Puts plans at the head of the network's catalogue.

    renew: as `keep`, writing an entry anew that is there
    """
    older = [plan for plan in listed(keep) if plan not in plans]
    text = json.dumps(asdict(_Catalogue((*plans, *older))), indent=1)
    renew(_LISTED, lambda folder: _write(folder / CATALOGUE, text))


def _write(file: Path, text: str) -> None:
    file.write_text(text + "\n", encoding="utf-8")


class _Absent(Exception):
    """The store has no entry of that key."""


def stored(keep: Keep, key: Mapping[str, str]) -> Path | None:
    """The entry's folder, None where there is none."""

    def absent(_: Path) -> None:
        raise _Absent

    try:
        return keep(key, absent)
    except _Absent:
        return None


def profiles(network: str, inputs: Mapping[str, Port], pictures: Pictures) -> list[Profile]:
    """The bucket of static engines for pictures of the optimum's size, and the dynamic one, where
    there are other shapes.

    Raises BackendUnavailable for a network with sides that pictures do not tell.
    """
    sides = _sides(network, pictures)
    named = dict.fromkeys(s for port in inputs.values() for s in port.sides if isinstance(s, str))
    if unknown := [name for name in named if name not in sides]:
        raise BackendUnavailable(
            f"{network} cannot be built: no recipe says how long {', '.join(unknown)} may be"
        )
    ranges = {name: sides[name].range for name in named}
    points = [
        dict(zip(named, point, strict=True))
        for point in product(*(sides[name].bucket for name in named))
    ]
    made = [_profile(inputs, point, point, point) for point in points]
    if prod(r.maximum - r.minimum + 1 for r in ranges.values()) > len(points):
        ends = ("minimum", "optimum", "maximum")
        made.append(
            _profile(inputs, *({n: getattr(r, e) for n, r in ranges.items()} for e in ends))
        )
    return made


@dataclass(frozen=True)
class _Side:
    """What a side of a network may be, and for which values there are static engines."""

    range: Range
    bucket: tuple[int, ...]


def _sides(network: str, pictures: Pictures) -> dict[str, _Side]:
    """By the names that graphs have for them (export/networks)."""
    batch, halves = pictures.batch, pictures.halves
    one = _Side(Range(1, 1, 1), (1,))
    rows = _Side(
        Range(
            min(halves) * batch.minimum, max(halves) * batch.optimum, max(halves) * batch.maximum
        ),
        tuple(sorted({half * count for half in halves for count in batch.bucket})),
    )
    if network == "time_projection":
        rows = _Side(Range(*_TIMES), ())
    elif network == "context_projection":  # run for one text at a time, as text encoders are
        rows = one
    tokens = pictures.tokens
    sides = {
        "tokens": Range(tokens, tokens, tokens),
        "image_height": pictures.height,
        "image_width": pictures.width,
        "height": pictures.height.over(pictures.scale),
        "width": pictures.width.over(pictures.scale),
    }
    return {
        "rows": rows,
        "batch": one if network.startswith("text_encoder") else _Side(batch, batch.bucket),
        **{name: _Side(r, (r.optimum,)) for name, r in sides.items()},
    }


def _profile(inputs: Mapping[str, Port], *points: Mapping[str, int]) -> Profile:
    least, best, largest = (
        {name: _shape(port, point) for name, port in inputs.items()} for point in points
    )
    return Profile(least, best, largest)


def _shape(port: Port, sides: Mapping[str, int]) -> Shape:
    return tuple(sides[side] if isinstance(side, str) else side for side in port.sides)
