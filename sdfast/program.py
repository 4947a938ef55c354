"""Programs: what a sampler compiles to.

A sampler is run once on symbolic latents. Sums and multiples of latents stay symbolic, as linear
combinations; where the network reads one, or the run ends, it becomes one fused Combine. What is
left are instructions (instructions.py) with every coefficient a float64 computed now: the loop that
runs them holds no scheduler arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import samplers
from .instructions import Blend, Combine, Eval, Instruction, Noise, Program, sources

__all__ = ["Blend", "Combine", "Eval", "Instruction", "Noise", "Program", "trace"]


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


def _without_dead(
    instructions: Sequence[Instruction], result: int, noise: str
) -> list[Instruction]:
    """Drops what nothing reads. A draw moves its stream on, and so stays for those that follow; a
    brownian one is a function of its levels alone."""
    needed, kept, drawn = {result}, list[Instruction](), False
    for instruction in reversed(instructions):
        is_draw = isinstance(instruction, Noise)
        if instruction.out in needed or (is_draw and drawn and noise != "brownian"):
            needed.update(sources(instruction))
            kept.append(instruction)
            drawn = drawn or is_draw
    return kept[::-1]


def _in_slots(
    instructions: Sequence[Instruction], result: int
) -> tuple[list[Instruction], int, int]:
    """Values → slots, as few as the values alive at once need; (instructions, slots, result)."""
    last_use = {result: len(instructions)}
    for at, instruction in enumerate(instructions):
        for value in sources(instruction):
            last_use[value] = max(last_use.get(value, 0), at)
    slot_of, free, slots = {0: 0}, list[int](), 1
    placed: list[Instruction] = []
    for at, instruction in enumerate(instructions):
        read = [slot_of[value] for value in sources(instruction)]
        dying = [v for v in dict.fromkeys(sources(instruction)) if last_use[v] == at]
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
