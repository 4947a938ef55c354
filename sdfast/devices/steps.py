"""Programs as the GPU's kernel reads them: a table of words, one row for each gap between two runs
of the network (native/kernels.cu says what is behind each operation).

Row 0 draws x and prepares the first evaluation. Row e takes the answer of evaluation e − 1, does
what the program does until it evaluates again, and prepares evaluation e; the last one writes the
result. So a run of E evaluations is E + 1 launches, with the network's runs between them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ..guidance import Guidance
from ..program import Blend, Combine, Eval, Program
from ..redrawing import beginning

WIDE_FROM = 8.0
"""Combinations with a larger coefficient are summed in float64, as by `_core.combine`."""


class Operation(IntEnum):
    """Of a row, as native/kernels.cu numbers them."""

    END = 0
    GUIDE = 1
    COMBINE = 2
    WIDE = 3
    GAUSSIAN = 4
    BROWNIAN = 5
    GIVEN = 6
    PREPARE = 7
    FINISH = 8
    BLEND = 9


@dataclass(frozen=True)
class Evaluation:
    """One run of the network.

    halves: whether the unguided half has a part in it
    shallow: whether it is the outermost part alone that runs
    """

    halves: bool
    shallow: bool


FIRST, PICTURE = "first", "picture"
Given = tuple[float, float] | str


@dataclass(frozen=True)
class Table:
    """A program's rows.

    words: uint32, row after row; starts: where each begins
    evaluations: those between the rows; timesteps: theirs
    slots: latents that the rows name
    given: the latents that the host makes, in order: of a draw the levels that it is made for,
        or FIRST, the run's first draw, or PICTURE, the picture that is redrawn
    """

    words: array[int]
    starts: array[int]
    evaluations: tuple[Evaluation, ...]
    timesteps: array[float]
    slots: int
    given: tuple[Given, ...]


@dataclass(frozen=True)
class Room:
    """What a program needs at most of what a plan keeps, in powers of two: words of the table,
    slots, evaluations, draws of the host."""

    words: int
    slots: int
    evaluations: int
    given: int

    @staticmethod
    def of(table: Table) -> Room:
        needs = (len(table.words), table.slots, len(table.evaluations) + 1, len(table.given))
        words, slots, evaluations, given = (1 << (need - 1).bit_length() for need in needs)
        return Room(max(words, 4096), max(slots, 8), max(evaluations, 32), given)

    def with_room_for(self, other: Room) -> Room:
        return Room(
            max(self.words, other.words),
            max(self.slots, other.slots),
            max(self.evaluations, other.evaluations),
            max(self.given, other.given),
        )


def table(
    program: Program,
    timestep: Callable[[float], float],
    guidance: Guidance,
    rng: str,
    from_picture: bool = False,
) -> Table:
    """The program's table.

    timestep: of a noise level
    guidance: says at which levels it acts; its scale and φ are not of the table
    rng: where normals come from (`sdfast.noise`); the kernel draws philox's and Brownian ones, the
        host all others
    from_picture: whether the run starts from the picture under noise, not from noise alone
    """
    begin, row = program.sigmas[0], list[int]()
    rows, evaluations, timesteps = [row], list[Evaluation](), list[float]()
    given = list[Given]()
    counted = 0  # normals that the kernel drew
    picture = 1 if program.picture is None else program.picture

    def draw(out: int, what: Given) -> list[int]:
        nonlocal counted
        first, levels = what == FIRST, what if isinstance(what, tuple) else None
        if rng == "philox" and (first or (levels is not None and program.noise == "gaussian")):
            counted += 1
            return [Operation.GAUSSIAN, out, counted - 1]
        if levels is not None and program.noise == "brownian":
            return [Operation.BROWNIAN, out, *_double(levels[0]), *_double(levels[1])]
        given.append(what)
        return [Operation.GIVEN, out, len(given) - 1]

    row += draw(0, FIRST)
    if from_picture or program.picture is not None:
        row += draw(picture, PICTURE)
    row += _combined(0, beginning(begin, picture if from_picture else None))
    kept = False  # whether the features that the network left are of both halves
    for i in program.instructions:
        if isinstance(i, Eval):
            halves = guidance.acts(i.sigma)
            shallow = i.shallow and (kept or not halves)
            kept = kept if shallow else halves
            t = timestep(i.sigma)
            row += [Operation.PREPARE, i.x, *_double(i.sigma), _float(t), len(evaluations)]
            evaluations.append(Evaluation(halves, shallow))
            timesteps.append(t)
            row = [Operation.GUIDE, i.out, i.x, 1 + halves, *_double(i.sigma)]
            rows.append(row)
        elif isinstance(i, Combine):
            row += _combined(i.out, i.terms)
        elif isinstance(i, Blend):
            row += [Operation.BLEND, i.out, i.x, i.kept]
        else:
            row += draw(i.out, (i.sigma, i.sigma_next))
    row += [Operation.FINISH, program.result]
    slots = max(program.slots, picture + 1 if from_picture else 1)
    return _table(rows, evaluations, timesteps, slots, given)


def single(sigma: float, t: float, halves: bool) -> Table:
    """The table of one evaluation: D(x, σ) of the x that the host gives."""
    rows = [
        [Operation.GIVEN, 0, 0, Operation.PREPARE, 0, *_double(sigma), _float(t), 0],
        [Operation.GUIDE, 1, 0, 1 + halves, *_double(sigma), Operation.FINISH, 1],
    ]
    return _table(rows, [Evaluation(halves, False)], [t], 2, [FIRST])


def _combined(out: int, terms: Sequence[tuple[float, int]]) -> list[int]:
    wide = any(abs(c) > WIDE_FROM for c, _ in terms)
    words: list[int] = [Operation.WIDE if wide else Operation.COMBINE, out, len(terms)]
    for c, slot in terms:
        words += [slot, *_double(c)] if wide else [slot, _float(c)]
    return words


def _table(
    rows: Sequence[Sequence[int]],
    evaluations: Sequence[Evaluation],
    timesteps: Sequence[float],
    slots: int,
    given: Sequence[Given],
) -> Table:
    words, starts = array("I"), array("I")
    for row in rows:
        starts.append(len(words))
        words.extend([*row, Operation.END])
    return Table(words, starts, tuple(evaluations), array("f", timesteps), slots, tuple(given))


def _float(value: float) -> int:
    """A float32's bits."""
    return int.from_bytes(struct.pack("<f", value), "little")


def _double(value: float) -> tuple[int, int]:
    """A float64's bits, the lower half first."""
    low, high = struct.unpack("<II", struct.pack("<d", value))
    return low, high
