"""Runs programs on the CPU: the engine's calls, and between them one pass of `_core` each.

Everything a run needs is allocated and computed when the Loop is made; a run itself allocates
nothing that grows with its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._core import combine, guide, prepare
from ..noise import Draw
from ..program import Combine, Eval, Program
from ..schedules import NoiseSchedule
from ..tensors import Tensor


class Loop:
    """One program with its slots, bound to a U-Net's tensors.

    program: what to run
    network: enqueues the U-Net on its bound tensors and returns when they hold its output
    tensors: the U-Net's "latent" [G·B, 4, h, w], "timestep" [G·B] and "noise" [G·B, 4, h, w]; G is
        1, or 2 for guidance with the unguided rows first
    shape: of one latent, [B, 4, h, w]
    """

    def __init__(
        self,
        program: Program,
        network: Callable[[], None],
        tensors: Mapping[str, Tensor],
        shape: tuple[int, int, int, int],
        schedule: NoiseSchedule,
        prediction: str,
    ) -> None:
        self._network = network
        self._input = tensors["latent"]
        self._timestep = tensors["timestep"]
        self._output = tensors["noise"]
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
        self, guidance: float, draw: Draw, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Runs the program on `x`; `result` holds the outcome.

        progress(done, evaluations) is called after each evaluation; what it raises ends the run.
        """
        done = 0
        for kind, out, sigma, t, coefficients, sources in self._steps:
            if kind == 0:
                prepare(self._input, self._timestep, sources[0], sigma, t)
                self._network()
                guide(out, self._output, sources[0], sigma, guidance, self._prediction)
                done += 1
                if progress is not None:
                    progress(done, self._evaluations)
            elif kind == 1:
                combine(out, coefficients, sources)
            else:
                draw(out)
