"""What a program is: a flat list of instructions over a few slots, each slot one latent
[B, C, h, w], which prints itself and goes to JSON and back.
"""

from __future__ import annotations

import json
import math
from dataclasses import astuple, dataclass
from typing import Any

from .errors import InvalidProgram
from .ranges import NOISES


@dataclass(frozen=True)
class Eval:
    """Slot `out` = the network, guided, as denoised D of slot `x` at noise level `sigma`.

    shallow: by the network's outermost part alone, with the features that the last evaluation by
        the whole network left (DeepCache, arXiv:2312.00858)
    """

    out: int
    x: int
    sigma: float
    shallow: bool = False


@dataclass(frozen=True)
class Combine:
    """Slot `out` = Σ coefficient · slot over `terms`; `out` may be one of them."""

    out: int
    terms: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Noise:
    """Slot `out` = the next draw of the request's noise stream, made for sigma → sigma_next."""

    out: int
    sigma: float
    sigma_next: float


@dataclass(frozen=True)
class Blend:
    """Slot `out` = m · slot `x` + (1 − m) · slot `kept`, with the mask m of the picture that is
    redrawn; `out` may be either."""

    out: int
    x: int
    kept: int


Instruction = Eval | Combine | Noise | Blend

VERSION = 3  # of the JSON form


@dataclass(frozen=True)
class Program:
    """A sampler's run over given sigmas. Slot 0 holds x at sigmas[0] when it starts; slot `result`
    holds x at the last sigma when it ends; `slots` are needed in all; `noise` is the kind that its
    Noise instructions draw. Slot `picture`, where there is one, holds the latents of the picture
    that is redrawn in part when it starts."""

    sampler: str
    sigmas: tuple[float, ...]
    noise: str
    instructions: tuple[Instruction, ...]
    slots: int
    result: int
    picture: int | None = None

    @property
    def evaluations(self) -> int:
        """Calls of the network."""
        return sum(isinstance(i, Eval) for i in self.instructions)

    @property
    def largest_coefficient(self) -> float:
        """Of all Combines, in absolute value: what an error of a latent grows by at most; NaN if
        one is."""
        sizes = [abs(c) for i in self.instructions if isinstance(i, Combine) for c, _ in i.terms]
        return math.nan if any(map(math.isnan, sizes)) else max(sizes, default=0.0)

    @property
    def latents_moved(self) -> int:
        """Latents read and written by the passes around the network, with two rows of guidance: an
        Eval reads x twice and the network's two outputs, and writes its two inputs and D."""
        moved = {Eval: 7, Noise: 1, Blend: 3}  # what a draw itself takes depends on its kind
        return sum(
            len(i.terms) + 1 if isinstance(i, Combine) else moved[type(i)]
            for i in self.instructions
        )

    def __str__(self) -> str:
        lines = [_line(i) for i in self.instructions]
        return "\n".join([*lines, f"result x{self.result}"])

    def to_json(self) -> str:
        """As JSON that from_json, or a program in another language, reads: every instruction is a
        list that begins with its name."""
        record = {
            "version": VERSION,
            "sampler": self.sampler,
            "sigmas": self.sigmas,
            "noise": self.noise,
            "slots": self.slots,
            "result": self.result,
            "picture": self.picture,
            "instructions": [(type(i).__name__.lower(), *astuple(i)) for i in self.instructions],
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that to_json wrote. Raises InvalidProgram for one that no device could run:
        of another form, or with a slot out of range or read before it was written."""
        try:
            record = json.loads(text)
            if record["version"] != VERSION:
                raise InvalidProgram(f"it is of version {record['version']!r}, not {VERSION}")
            program = cls(
                sampler=_word(record["sampler"]),
                sigmas=tuple(map(_finite, record["sigmas"])),
                noise=_word(record["noise"]),
                instructions=tuple(_instruction(*row) for row in record["instructions"]),
                slots=_whole(record["slots"]),
                result=_whole(record["result"]),
                picture=None if record["picture"] is None else _whole(record["picture"]),
            )
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InvalidProgram(f"this is not a program as to_json writes it: {error}") from None
        _check(program)
        return program


def sources(instruction: Instruction) -> tuple[int, ...]:
    """The slots that it reads."""
    if isinstance(instruction, Eval):
        return (instruction.x,)
    if isinstance(instruction, Combine):
        return tuple(value for _, value in instruction.terms)
    if isinstance(instruction, Blend):
        return instruction.x, instruction.kept
    return ()


def _line(instruction: Instruction) -> str:
    """An instruction as a person reads it: `x1 = D(x0, σ 14.6146)`."""
    if isinstance(instruction, Eval):
        how = ", cached" if instruction.shallow else ""
        return f"x{instruction.out} = D(x{instruction.x}, σ {instruction.sigma:.6g}{how})"
    if isinstance(instruction, Noise):
        return (
            f"x{instruction.out} = noise(σ {instruction.sigma:.6g} → {instruction.sigma_next:.6g})"
        )
    if isinstance(instruction, Blend):
        return f"x{instruction.out} = m·x{instruction.x} + (1 − m)·x{instruction.kept}"
    terms = " + ".join(f"{c:.6g}·x{slot}" for c, slot in instruction.terms)
    return f"x{instruction.out} = {terms}".replace("+ -", "− ")


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _instruction(kind: str, out: int, *rest: Any) -> Instruction:
    if kind == "eval":
        x, sigma, shallow = rest
        return Eval(out, x, _finite(sigma), _truth(shallow))
    if kind == "combine":
        (terms,) = rest
        return Combine(out, tuple((_finite(c), slot) for c, slot in terms))
    if kind == "noise":
        sigma, sigma_next = rest
        return Noise(out, _finite(sigma), _finite(sigma_next))
    if kind == "blend":
        x, kept = rest
        return Blend(out, x, kept)
    raise ValueError(f"instruction {kind!r} is unknown; use eval, combine, noise or blend")


def _check(program: Program) -> None:
    if not 1 <= program.slots <= len(program.instructions) + 2:
        raise InvalidProgram(f"{program.slots} slots are not what its instructions need")
    if program.noise not in NOISES:
        raise InvalidProgram(f"noise {program.noise!r} is unknown; use {', '.join(NOISES)}")
    first = next((i for i in program.instructions if isinstance(i, Eval)), None)
    if first is not None and first.shallow:
        raise InvalidProgram("its first evaluation is shallow, which needs features of one before")
    if program.picture is not None and not 0 < program.picture < program.slots:
        raise InvalidProgram(f"picture is slot {program.picture}, outside 1…{program.slots - 1}")
    written = {0} if program.picture is None else {0, program.picture}
    for at, instruction in enumerate(program.instructions):
        slots = (instruction.out, *sources(instruction))
        if not all(type(slot) is int and 0 <= slot < program.slots for slot in slots):
            raise InvalidProgram(f"instruction {at} names a slot outside 0…{program.slots - 1}")
        if not written.issuperset(slots[1:]):
            raise InvalidProgram(f"instruction {at} reads a slot that nothing wrote before")
        if isinstance(instruction, Eval) and instruction.out == instruction.x:
            raise InvalidProgram(f"instruction {at} evaluates a slot into itself")
        if isinstance(instruction, Combine) and not instruction.terms:
            raise InvalidProgram(f"instruction {at} combines nothing")
        written.add(instruction.out)
    if program.result not in written:
        raise InvalidProgram("nothing writes the result's slot")
