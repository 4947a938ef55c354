"""Programs: what a sampler compiles to.

A sampler is run once on symbolic latents. Sums and multiples of latents stay symbolic, as linear
combinations; where the network reads one, or the run ends, it becomes one fused Combine. What is
left is a flat list of instructions over a few slots, each slot one latent [B, C, h, w], with
every coefficient a float64 computed now: the loop that runs it holds no scheduler arithmetic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from . import samplers
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


def trace(name: str, sigmas: Sequence[float], **parameters: Any) -> Program:
    """Compiles sampler `name` (or alias) for these sigmas and parameters.

    Raises UnknownSampler, InvalidRequest for wrong parameters, and ValueError for sigmas that do
    not descend or a sampler whose steps depend on data.
    """
    sampler = samplers.get(name)
    if not sampler.static:
        raise ValueError(f"sampler {sampler.name} depends on data: it has no program")

    def traced(stored: frozenset[int]) -> tuple[Program, frozenset[int]]:
        recording = _Recording(stored)
        x = _Latent(recording, {recording.new_value(): 1.0})
        final = sampler.sample(recording.evaluate, x, sigmas, recording.draw, **parameters)
        if not isinstance(final, _Latent):
            raise TypeError(f"sampler {sampler.name} returned no latent")
        result = recording.value_of(final)
        noise = sampler.noise_kind(parameters)
        live = _without_dead(recording.instructions, result, noise)
        placed, slots, slot = _in_slots(live, result)
        levels = tuple(float(sigma) for sigma in sigmas)
        program = Program(sampler.name, levels, noise, tuple(placed), slots, slot)
        return program, frozenset(recording.recalled)

    # A combination that later steps come back to can be written out anew each time, from its own
    # terms, or be stored once: a multistep method's slope then takes one slot in place of two.
    symbolic, recalled = traced(frozenset())
    if not recalled:
        return symbolic
    stored, _ = traced(recalled)
    return min(symbolic, stored, key=lambda p: (p.slots, p.latents_moved))


# --- recording: every instruction writes a value of its own --------------------------------------


@dataclass
class _Recording:
    """stored: latents, by their number, to write to a value when they are made;
    recalled: those that were used again after another evaluation, still symbolic."""

    stored: frozenset[int]
    instructions: list[Instruction] = field(default_factory=list)
    values: int = 0
    latents: int = 0
    evaluations: int = 0
    recalled: set[int] = field(default_factory=set)
    combined: dict[tuple[tuple[int, float], ...], int] = field(default_factory=dict)

    def new_value(self) -> int:
        self.values += 1
        return self.values - 1

    def value_of(self, latent: _Latent) -> int:
        """The value that holds a latent: itself, or a Combine recorded now and remembered."""
        if list(latent.terms.values()) != [1.0]:
            key = tuple(sorted(latent.terms.items()))
            if key not in self.combined:
                self.combined[key] = self.new_value()
                terms = tuple((c, value) for value, c in latent.terms.items())
                self.instructions.append(Combine(self.combined[key], terms))
            latent.terms = {self.combined[key]: 1.0}
        return next(iter(latent.terms))

    def evaluate(self, x: _Latent, sigma: float) -> _Latent:
        source, out = self.value_of(x), self.new_value()
        self.evaluations += 1
        self.instructions.append(Eval(out, source, float(sigma)))
        return _Latent(self, {out: 1.0})

    def draw(self, sigma: float, sigma_next: float) -> _Latent:
        out = self.new_value()
        self.instructions.append(Noise(out, float(sigma), float(sigma_next)))
        return _Latent(self, {out: 1.0})


class _Latent:
    """A linear combination of recorded values, {value: coefficient}."""

    __array_ufunc__ = None  # a NumPy scalar as a factor leaves the product to this class

    def __init__(self, recording: _Recording, terms: dict[int, float]) -> None:
        self.recording = recording
        self.terms = terms
        self.number = recording.latents
        self.made = recording.evaluations
        recording.latents += 1
        if self.number in recording.stored:
            recording.value_of(self)

    def used(self) -> dict[int, float]:
        """The terms, for one more combination."""
        if self.made < self.recording.evaluations and len(self.terms) > 1:
            self.recording.recalled.add(self.number)
        return self.terms

    def __add__(self, other: _Latent) -> _Latent:
        if not isinstance(other, _Latent):
            return NotImplemented
        return _Latent(self.recording, _sum(self.used(), other.used()))

    def __sub__(self, other: _Latent) -> _Latent:
        return self + other * -1.0

    def __mul__(self, factor: float) -> _Latent:
        if isinstance(factor, _Latent):  # not linear: no program can hold it
            return NotImplemented
        terms = {value: c * float(factor) for value, c in self.used().items()}
        return _Latent(self.recording, terms)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> _Latent:
        return self * (1.0 / divisor)

    def __neg__(self) -> _Latent:
        return self * -1.0


def _sum(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    total = {value: a.get(value, 0.0) + b.get(value, 0.0) for value in {**a, **b}}
    # A term that vanished keeps no latent alive, but an empty combination has nothing to be.
    return {value: c for value, c in total.items() if c != 0.0} or dict(list(total.items())[:1])


# --- from values to slots ------------------------------------------------------------------------


def _sources(instruction: Instruction) -> tuple[int, ...]:
    if isinstance(instruction, Eval):
        return (instruction.x,)
    if isinstance(instruction, Combine):
        return tuple(value for _, value in instruction.terms)
    if isinstance(instruction, Blend):
        return instruction.x, instruction.kept
    return ()


def _without_dead(
    instructions: Sequence[Instruction], result: int, noise: str
) -> list[Instruction]:
    """Drops what nothing reads. A draw moves its stream on, and so stays for those that follow; a
    brownian one is a function of its levels alone."""
    needed, kept, drawn = {result}, list[Instruction](), False
    for instruction in reversed(instructions):
        is_draw = isinstance(instruction, Noise)
        if instruction.out in needed or (is_draw and drawn and noise != "brownian"):
            needed.update(_sources(instruction))
            kept.append(instruction)
            drawn = drawn or is_draw
    return kept[::-1]


def _in_slots(
    instructions: Sequence[Instruction], result: int
) -> tuple[list[Instruction], int, int]:
    """Values → slots, as few as the values alive at once need; (instructions, slots, result)."""
    last_use = {result: len(instructions)}
    for at, instruction in enumerate(instructions):
        for value in _sources(instruction):
            last_use[value] = max(last_use.get(value, 0), at)
    slot_of, free, slots = {0: 0}, list[int](), 1
    placed: list[Instruction] = []
    for at, instruction in enumerate(instructions):
        read = [slot_of[value] for value in _sources(instruction)]
        dying = [v for v in dict.fromkeys(_sources(instruction)) if last_use[v] == at]
        # Combine may write over what it reads; the network's result may not replace its x.
        early = dying if isinstance(instruction, Combine) else []
        free += [slot_of[value] for value in early]
        if not free:
            free.append(slots)
            slots += 1
        slot = free.pop()
        slot_of[instruction.out] = slot
        free += [slot_of[value] for value in dying if value not in early]
        if instruction.out not in last_use:  # a draw that nothing reads
            free.append(slot)
        placed.append(_moved(instruction, slot, read))
    return placed, slots, slot_of[result]


def _moved(instruction: Instruction, out: int, read: Sequence[int]) -> Instruction:
    if isinstance(instruction, Eval):
        return replace(instruction, out=out, x=read[0])
    if isinstance(instruction, Combine):
        coefficients: Iterator[float] = (c for c, _ in instruction.terms)
        return Combine(out, tuple(zip(coefficients, read, strict=True)))
    return replace(instruction, out=out)


# --- to text and back ----------------------------------------------------------------------------


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
        slots = (instruction.out, *_sources(instruction))
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
