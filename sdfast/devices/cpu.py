"""Runs samplers on the CPU: the engine's calls, and between them passes of `_core`.

A Loop runs a program: everything it needs is allocated and computed when it is made; a run itself
allocates nothing that grows with its steps. A HostRun runs a sampler that depends on data, and so
has no program, as the function that it is.

Neither calls a network itself: it says what is to be called (calls.py), and goes on when it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from .._core import blend, combine, guide, prepare
from ..guidance import Guidance
from ..noise import Draw, Start
from ..program import Blend, Combine, Eval, Instruction, Program
from ..redrawing import Redrawn, beginning
from ..samplers import Sampler
from ..schedules import NoiseSchedule
from ..tensors import Tensor
from .calls import Call, Network, Running, handed, made

Progress = Callable[[int, int | None, Tensor], None]
"""progress(done, evaluations, denoised) after each evaluation; evaluations is None where nobody
knows them before, denoised f32 [B, C, h, w] of the host what it says, until it returns. What it
raises ends the run."""


class Evaluator(Protocol):
    """What a sampler that depends on data calls: a Denoiser, or a GPU's part of one."""

    def timestep(self, sigma: float, /) -> float: ...
    def begin(self) -> None: ...
    def __call__(
        self, out: Tensor, x: Tensor, sigma: float, t: float, guidance: Guidance
    ) -> None: ...


class TimeTable:
    """The time embeddings of every evaluation of a program, from one run of the network
    time_projection before its first.

    network: time_projection
    tensors: its "timestep" [G·E], "time" [G·E, S] and what else it reads, all with G·E rows, those
        of the unguided half first; the table fills "timestep", others the rest before `compute`
    timesteps: the E that differ
    time: the U-Net's [G·B, S]
    """

    def __init__(
        self,
        network: Network,
        tensors: Mapping[str, Tensor],
        timesteps: Sequence[float],
        time: Tensor,
    ) -> None:
        self._network = network
        self.tensors = tensors
        self.count = len(timesteps)
        steps = memoryview(tensors["timestep"]).cast("B").cast("f")
        for row in range(len(steps)):
            steps[row] = timesteps[row % self.count]
        table, target = _rows(tensors["time"]), _rows(time)
        images = len(target) * self.count // len(table)
        self._sources = {t: table[e :: self.count] for e, t in enumerate(timesteps)}
        self._targets = [target[k : k + images] for k in range(0, len(target), images)]

    def compute(self) -> None:
        """Fills the table, for what `tensors` hold now."""
        self._network.bind(self.tensors)
        self._network.run()

    def look_up(self, t: float) -> None:
        """Copies the rows of timestep t to the U-Net's, each half's to all of its images."""
        for source, targets in zip(self._sources[t], self._targets, strict=True):
            for target in targets:
                target[:] = source


def _rows(tensor: Tensor) -> list[memoryview]:
    """Each row's bytes."""
    whole, side = memoryview(tensor).cast("B"), tensor.nbytes // tensor.shape[0]
    return [whole[start : start + side] for start in range(0, tensor.nbytes, side)]


class Denoiser:
    """A U-Net and its tensors as the denoised D(x, σ), guided.

    network: the U-Net
    tensors: the U-Net's "latent" [G·B, 4, h, w], "timestep" [G·B], "noise" [G·B, 4, h, w] and what
        else it reads and writes, all with G·B rows; G is 1, or 2 for guidance with the unguided
        rows first
    batch: B
    times: where the U-Net reads "time" of a table, and not the timestep
    projection: the network time_projection where it reads "time" and nobody knows the timesteps
        before: it is called before the U-Net each time
    shallow: the U-Net's outermost part, on the same tensors, of which it reads the "features" that
        the U-Net writes; without it the U-Net runs at shallow evaluations too
    weights: of the guided rows of each image, where several guide together: G is one more then, and
        guidance acts at every evaluation
    before: is told the noise level of an evaluation before it, to change what the networks read
    """

    def __init__(
        self,
        network: Network,
        tensors: Mapping[str, Tensor],
        batch: int,
        schedule: NoiseSchedule,
        prediction: str,
        times: TimeTable | None = None,
        shallow: Network | None = None,
        projection: Network | None = None,
    ) -> None:
        self._whole, self._shallow = network, shallow
        self._times, self._projection = times, projection
        self._left: Mapping[str, Tensor] | None = None  # features, by the last run of the whole
        self._all_rows = tensors
        rows = tensors["latent"].shape[0]
        self._guided_rows = {name: t.rows(rows - batch, rows) for name, t in tensors.items()}
        self._prediction, self._batch = prediction, batch
        self.timestep = schedule.timestep
        self.weights: Sequence[float] = (1.0,)
        self.before: Callable[[float], None] | None = None
        self._mixed: Tensor | None = None

    def begin(self) -> None:
        """Before a run: what another one left is not this one's."""
        self._left = None

    def __call__(self, out: Tensor, x: Tensor, sigma: float, t: float, guidance: Guidance) -> None:
        made(self.calls(out, x, sigma, t, guidance))

    def calls(
        self,
        out: Tensor,
        x: Tensor,
        sigma: float,
        t: float,
        guidance: Guidance,
        shallow: bool = False,
    ) -> Running[None]:
        """out = D(x, σ), both [B, 4, h, w], with t = timestep(σ). The network is bound to other
        tensors where guidance begins or ends to act, to halve what it computes.

        shallow: by the outermost part, where the last run of the whole left features of every row
        """
        tensors = self._all_rows if guidance.acts(sigma) else self._guided_rows
        network, left = self._whole, self._left
        if shallow and self._shallow is not None and (left is tensors or left is self._all_rows):
            network = self._shallow
        else:
            self._left = tensors
        if self.before is not None:
            self.before(sigma)
        self._prepare(tensors, x, sigma, t)
        if self._times is not None:
            self._times.look_up(t)
        if self._projection is not None:
            yield self._projection, tensors
        yield network, tensors
        scale, rescale, noise = guidance.scale, guidance.rescale, tensors["noise"]
        if len(self.weights) > 1 or self.weights[0] != 1:
            noise, scale, rescale = self._composed(noise, scale), 1.0, 0.0
        guide(out, noise, x, sigma, scale, self._prediction, rescale)

    def _prepare(self, tensors: Mapping[str, Tensor], x: Tensor, sigma: float, t: float) -> None:
        """The network's input for all rows, by two for each image."""
        latent, timestep, pair = tensors["latent"], tensors["timestep"], 2 * self._batch
        if latent.shape[0] <= pair:
            prepare(latent, timestep, x, sigma, t)
            return
        for k in range(0, latent.shape[0], pair):
            end = min(k + pair, latent.shape[0])
            prepare(latent.rows(k, end), timestep.rows(k, end), x, sigma, t)

    def _composed(self, noise: Tensor, scale: float) -> Tensor:
        """U + scale · Σ wᵢ (Nᵢ − U) of the network's rows U, N₁, N₂ … (arXiv:2206.01714)."""
        batch, count = self._batch, noise.shape[0] // self._batch
        rows = [noise.rows(k * batch, (k + 1) * batch) for k in range(count)]
        if self._mixed is None:
            self._mixed = Tensor.empty(rows[0].shape, "f32")
        shares = [scale * weight for weight in self.weights]
        combine(self._mixed, [1 - sum(shares), *shares], rows)
        return self._mixed


def start(x: Tensor, sigma: float, first: Start, redrawn: Redrawn | None = None) -> None:
    """Fills x with what a run starts from: the stream's first draw as `beginning` takes it."""
    first(x)
    from_noise = redrawn is None or redrawn.fresh
    sources = [x] if redrawn is None else [x, redrawn.latents]
    terms = beginning(sigma, None if from_noise else 1)
    combine(x, [c for c, _ in terms], [sources[k] for _, k in terms])


class Loop:
    """One program with its slots, each a latent of `shape` [B, 4, h, w]: fill `x`, run, and
    `result` holds the outcome."""

    def __init__(
        self, program: Program, denoiser: Denoiser, shape: tuple[int, int, int, int]
    ) -> None:
        self._denoiser = denoiser
        self._slots = [Tensor.empty(shape, "f32") for _ in range(program.slots)]
        self._evaluations = program.evaluations
        self._steps = [self._operands(i) for i in program.instructions]
        self.x = self._slots[0]
        self._picture = None if program.picture is None else self._slots[program.picture]
        self.result = self._slots[program.result]

    def _operands(
        self, instruction: Instruction
    ) -> tuple[int, Tensor, float, float, list[float], list[Tensor], bool]:
        # (kind, out, σ, t or σ_next, coefficients, sources, shallow): all that the loop reads.
        out = self._slots[instruction.out]
        if isinstance(instruction, Eval):
            sigma = instruction.sigma
            t = self._denoiser.timestep(sigma)
            return 0, out, sigma, t, [], [self._slots[instruction.x]], instruction.shallow
        if isinstance(instruction, Combine):
            coefficients = [c for c, _ in instruction.terms]
            sources = [self._slots[k] for _, k in instruction.terms]
            return 1, out, 0.0, 0.0, coefficients, sources, False
        if isinstance(instruction, Blend):
            sources = [self._slots[instruction.x], self._slots[instruction.kept]]
            return 3, out, 0.0, 0.0, [], sources, False
        return 2, out, instruction.sigma, instruction.sigma_next, [], [], False

    def run(
        self,
        guidance: Guidance,
        draw: Draw,
        progress: Progress | None = None,
        redrawn: Redrawn | None = None,
    ) -> None:
        """Runs the program on `x`, which it uses up. redrawn: with its mask, where the program
        redraws a part of a picture."""
        made(self.calls(guidance, draw, progress, redrawn))

    def calls(
        self,
        guidance: Guidance,
        draw: Draw,
        progress: Progress | None = None,
        redrawn: Redrawn | None = None,
    ) -> Running[None]:
        """The same, without the calls of networks."""
        done, denoiser = 0, self._denoiser
        mask = None if redrawn is None else redrawn.mask
        if self._picture is not None:
            if redrawn is None or mask is None:
                raise ValueError("the program redraws a part of a picture: give it, with its mask")
            combine(self._picture, [1.0], [redrawn.latents])
        denoiser.begin()
        for kind, out, sigma, t, coefficients, sources, shallow in self._steps:
            if kind == 0:
                yield from denoiser.calls(out, sources[0], sigma, t, guidance, shallow)
                done += 1
                if progress is not None:
                    progress(done, self._evaluations, out)
            elif kind == 1:
                combine(out, coefficients, sources)
            elif kind == 2:
                draw(out, sigma, t)
            elif mask is not None:
                blend(out, sources[0], sources[1], mask)


class _Elsewhere:
    """A Denoiser whose calls are made by another."""

    def __init__(self, denoiser: Denoiser, make: Callable[[Call], None]) -> None:
        self.timestep, self.begin = denoiser.timestep, denoiser.begin
        self._denoiser, self._make = denoiser, make

    def __call__(self, out: Tensor, x: Tensor, sigma: float, t: float, guidance: Guidance) -> None:
        for call in self._denoiser.calls(out, x, sigma, t, guidance):
            self._make(call)


class HostRun:
    """A sampler on NumPy arrays in float64, with the latent crossing over once an evaluation: fill
    `x`, run, and `result`, the same tensor, holds the outcome."""

    def __init__(
        self,
        sampler: Sampler,
        sigmas: Sequence[float],
        parameters: Mapping[str, Any],
        denoiser: Evaluator,
        shape: tuple[int, int, int, int],
    ) -> None:
        self._sampler = sampler
        self._sigmas = sigmas
        self._parameters = parameters
        self._denoiser = denoiser
        self._drawn, self._denoised = Tensor.empty(shape, "f32"), Tensor.empty(shape, "f32")
        self.x = self.result = Tensor.empty(shape, "f32")

    def run(
        self,
        guidance: Guidance,
        draw: Draw,
        progress: Progress | None = None,
        redrawn: Redrawn | None = None,
    ) -> None:
        """Runs the sampler on `x`. redrawn: of which, with a mask, a part alone is redrawn, as
        sdfast.redrawing says."""
        self._run(self._denoiser, guidance, draw, progress, redrawn)

    def calls(
        self,
        guidance: Guidance,
        draw: Draw,
        progress: Progress | None = None,
        redrawn: Redrawn | None = None,
    ) -> Running[None]:
        """The same, without the calls of networks, for a Denoiser."""
        denoiser = self._denoiser
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"{type(denoiser).__name__} makes its calls itself")

        def run(make: Callable[[Call], None]) -> None:
            self._run(_Elsewhere(denoiser, make), guidance, draw, progress, redrawn)

        return handed(run)

    def _run(
        self,
        denoiser: Evaluator,
        guidance: Guidance,
        draw: Draw,
        progress: Progress | None,
        redrawn: Redrawn | None,
    ) -> None:
        import numpy as np

        x, denoised, drawn = (np.asarray(t) for t in (self.x, self._denoised, self._drawn))
        begin = x.astype(np.float64)
        mask = picture = None
        if redrawn is not None and redrawn.mask is not None:
            mask = np.asarray(redrawn.mask).astype(np.float64)
            picture = np.asarray(redrawn.latents).astype(np.float64)

        def kept(latent: Any, sigma: float) -> Any:
            if mask is None or picture is None:
                return latent
            way = picture + sigma / self._sigmas[0] * (begin - picture)
            return mask * latent + (1 - mask) * way

        known = not self._parameters and self._sigmas[-1] == 0
        evaluations = self._sampler.evaluations(len(self._sigmas) - 1) if known else None
        done = 0

        def model(latent: Any, sigma: float) -> Any:
            nonlocal done
            x[:] = kept(latent, sigma)
            denoiser(self._denoised, self.x, sigma, denoiser.timestep(sigma), guidance)
            done += 1
            if progress is not None:
                progress(done, evaluations, self._denoised)
            return kept(denoised.astype(np.float64), 0.0)

        def noise(sigma: float, sigma_next: float) -> Any:
            draw(self._drawn, sigma, sigma_next)
            return drawn.astype(np.float64)

        denoiser.begin()
        end = self._sampler.sample(model, begin, self._sigmas, noise, **self._parameters)
        x[:] = kept(end, self._sigmas[-1])
