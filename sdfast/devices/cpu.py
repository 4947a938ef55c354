"""Runs programs on the CPU: the engine's calls, and between them one pass of `_core` each.

Everything a run needs is allocated and computed when the Loop is made; a run itself allocates
nothing that grows with its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from .._core import combine, guide, prepare
from ..guidance import Guidance
from ..noise import Draw
from ..program import Combine, Eval, Program
from ..schedules import NoiseSchedule
from ..tensors import Tensor


class Network(Protocol):
    """What the loop needs of the U-Net's engine."""

    def bind(self, tensors: Mapping[str, Tensor], /) -> None: ...
    def run(self) -> None: ...


class Loop:
    """One program with its slots, and a U-Net's tensors.

    program: what to run
    network: the U-Net; `run` returns when its bound tensors hold the output
    tensors: the U-Net's "latent" [G·B, 4, h, w], "timestep" [G·B], "noise" [G·B, 4, h, w] and what
        else it reads, all with G·B rows; G is 1, or 2 for guidance with the unguided rows first
    shape: of one latent, [B, 4, h, w]
    """

    def __init__(
        self,
        program: Program,
        network: Network,
        tensors: Mapping[str, Tensor],
        shape: tuple[int, int, int, int],
        schedule: NoiseSchedule,
        prediction: str,
    ) -> None:
        self._network = network
        self._all_rows = tensors
        rows, batch = tensors["latent"].shape[0], shape[0]
        self._guided_rows = {name: t.rows(rows - batch, rows) for name, t in tensors.items()}
        self._bound: Mapping[str, Tensor] | None = None
        self._prediction = prediction
        self._slots = [Tensor.empty(shape, "f32") for _ in range(program.slots)]
        self._evaluations = program.evaluations
        self._steps = [self._operands(i, schedule) for i in program.instructions]
        self.x = self._slots[0]
        self.result = self._slots[program.result]

    def _operands(
        self, instruction: object, schedule: NoiseSchedule
    ) -> tuple[int, Tensor, float, float, list[float], list[Tensor]]:
        # (kind, out, σ, t, coefficients, sources): all that the loop below reads.
        if isinstance(instruction, Eval):
            x, sigma = self._slots[instruction.x], instruction.sigma
            return 0, self._slots[instruction.out], sigma, schedule.timestep(sigma), [], [x]
        if isinstance(instruction, Combine):
            coefficients = [c for c, _ in instruction.terms]
            sources = [self._slots[slot] for _, slot in instruction.terms]
            return 1, self._slots[instruction.out], 0.0, 0.0, coefficients, sources
        return 2, self._slots[instruction.out], 0.0, 0.0, [], []  # type: ignore[attr-defined]

    def start(self, sigma: float, draw: Draw) -> None:
        """Fills `x` with the first draw at noise level √(σ² + 1): as a training latent of unit
        deviation under noise σ."""
        draw(self.x)
        combine(self.x, [(sigma * sigma + 1) ** 0.5], [self.x])

    def run(
        self, guidance: Guidance, draw: Draw, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Runs the program on `x`; `result` holds the outcome.

        progress(done, evaluations) is called after each evaluation; what it raises ends the run.
        """
        done = 0
        self._bound = None  # other loops use the network as well
        for kind, out, sigma, t, coefficients, sources in self._steps:
            if kind == 0:
                self._evaluate(out, sources[0], sigma, t, guidance)
                done += 1
                if progress is not None:
                    progress(done, self._evaluations)
            elif kind == 1:
                combine(out, coefficients, sources)
            else:
                draw(out)

    def _evaluate(self, out: Tensor, x: Tensor, sigma: float, t: float, guidance: Guidance) -> None:
        """out = D(x, σ), guided. The network is bound anew where guidance begins or ends to act:
        some 10 µs each time, to halve what it computes."""
        tensors = self._all_rows if guidance.acts(sigma) else self._guided_rows
        if tensors is not self._bound:
            self._network.bind(tensors)
            self._bound = tensors
        prepare(tensors["latent"], tensors["timestep"], x, sigma, t)
        self._network.run()
        scale, rescale = guidance.scale, guidance.rescale
        guide(out, tensors["noise"], x, sigma, scale, self._prediction, rescale)
