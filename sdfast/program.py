"""Programs: what a sampler compiles to.

A sampler is run once on symbolic latents. Sums and multiples of latents stay symbolic, as linear
combinations; where the network reads one, or the run ends, it becomes one fused Combine. What is
left is a flat list of three instructions over a few slots, each slot one latent [B, C, h, w], with
every coefficient a float64 computed now: the loop that runs it holds no scheduler arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import samplers


@dataclass(frozen=True)
class Eval:
    """Slot `out` = the network, guided, as denoised D of slot `x` at noise level `sigma`."""

    out: int
    x: int
    sigma: float


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


Instruction = Eval | Combine | Noise


@dataclass(frozen=True)
class Program:
    """A sampler's run over given sigmas. Slot 0 holds x at sigmas[0] when it starts; slot `result`
    holds x at the last sigma when it ends; `slots` are needed in all."""

    sampler: str
    sigmas: tuple[float, ...]
    instructions: tuple[Instruction, ...]
    slots: int
    result: int

    @property
    def evaluations(self) -> int:
        """Calls of the network."""
        return sum(isinstance(i, Eval) for i in self.instructions)


def trace(name: str, sigmas: Sequence[float], **parameters: Any) -> Program:
    """Compiles sampler `name` (or alias) for these sigmas and parameters.

    Raises UnknownSampler, InvalidRequest for wrong parameters, and ValueError for sigmas that do
    not descend or a sampler whose steps depend on data.
    """
    sampler = samplers.get(name)
    if not sampler.static:
        raise ValueError(f"sampler {sampler.name} depends on data: it has no program")
    recording = _Recording()
    x = _Latent(recording, {recording.new_value(): 1.0})
    final = sampler.sample(recording.evaluate, x, sigmas, recording.draw, **parameters)
    result = recording.value_of(final)
    live = _without_dead(recording.instructions, result)
    instructions, slots, slot = _in_slots(live, result)
    levels = tuple(float(sigma) for sigma in sigmas)
    return Program(sampler.name, levels, tuple(instructions), slots, slot)


# --- recording: every instruction writes a value of its own --------------------------------------


@dataclass
class _Recording:
    instructions: list[Instruction] = field(default_factory=list)
    values: int = 0

    def new_value(self) -> int:
        self.values += 1
        return self.values - 1

    def value_of(self, latent: _Latent) -> int:
        """The value that holds a latent: itself, or a Combine recorded now and remembered."""
        if list(latent.terms.values()) != [1.0]:
            out = self.new_value()
            terms = tuple((c, value) for value, c in latent.terms.items())
            self.instructions.append(Combine(out, terms))
            latent.terms = {out: 1.0}
        return next(iter(latent.terms))

    def evaluate(self, x: _Latent, sigma: float) -> _Latent:
        source, out = self.value_of(x), self.new_value()
        self.instructions.append(Eval(out, source, float(sigma)))
        return _Latent(self, {out: 1.0})

    def draw(self, sigma: float, sigma_next: float) -> _Latent:
        out = self.new_value()
        self.instructions.append(Noise(out, float(sigma), float(sigma_next)))
        return _Latent(self, {out: 1.0})


@dataclass(eq=False)
class _Latent:
    """A linear combination of recorded values, {value: coefficient}."""

    recording: _Recording
    terms: dict[int, float]

    def __add__(self, other: _Latent) -> _Latent:
        if not isinstance(other, _Latent):
            return NotImplemented
        return _Latent(self.recording, _sum(self.terms, other.terms))

    def __sub__(self, other: _Latent) -> _Latent:
        return self + other * -1.0

    def __mul__(self, factor: float) -> _Latent:
        if isinstance(factor, _Latent):  # not linear: no program can hold it
            return NotImplemented
        return _Latent(self.recording, {value: c * factor for value, c in self.terms.items()})

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
    return ()


def _without_dead(instructions: Sequence[Instruction], result: int) -> list[Instruction]:
    """Drops what nothing reads; a draw stays, because it moves the noise stream on."""
    needed, kept = {result}, []
    for instruction in reversed(instructions):
        if instruction.out in needed or isinstance(instruction, Noise):
            needed.update(_sources(instruction))
            kept.append(instruction)
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
