"""Runs programs on a GPU as CUDA graphs, of which the host launches one for a whole picture.

A Plan holds what runs of one shape touch: the networks' tensors, the program's table and latents,
and what differs from request to request (seeds, guidance, conditions). All of it stays where it is,
so that a graph, which holds addresses, is captured once and serves every request of the shape. The
program is data too (steps.py): graphs are told apart by what the host enqueues alone, so that
another sampler, schedule or guidance captures nothing anew.

Two forms, of the same launches:
    program: one graph from the first draw to the pixels
    step: a graph for one evaluation, launched for each; the row that it takes is counted on the GPU
Networks that cannot be captured are enqueued from the host, launch by launch: "eager".
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..guidance import Guidance
from ..noise import streams
from ..redrawing import Redrawn, lay_beside
from ..tensors import Tensor
from .cpu import Progress
from .cuda import Run
from .graphs import Gpu, Graphs, Mark, Mirror
from .steps import FIRST, Evaluation, Room, Table, single

FORMS = ("program", "step", "eager")
THREADS = 256  # of a block of kernels; as many as native/kernels.cu has lanes
_PREDICTIONS = ("epsilon", "v_prediction", "sample")  # numbered as in native/formulas.h
_LATENTS = ("latent", "timestep", "time")  # what the kernel writes of the networks' inputs


class Network(Protocol):
    """What is needed of an engine."""

    @property
    def capturable(self) -> bool: ...
    def bind(self, tensors: Mapping[str, Tensor], /) -> None: ...
    def run(self, stream: int = 0) -> None: ...


@dataclass(frozen=True)
class Networks:
    """The engines that a picture takes; shallow and time where the bundle has them, and no decoder
    where a run ends with latents."""

    unet: Network
    shallow: Network | None
    time: Network | None
    decoder: Network | None

    @property
    def capturable(self) -> bool:
        found = (self.unet, self.shallow, self.time, self.decoder)
        return all(network.capturable for network in found if network is not None)


Shapes = Mapping[str, tuple[Sequence[int], str]]
"""Shape and type of a network's tensors by name."""


class Plan:
    """What runs of one shape touch on a GPU.

    networks: their tensors are of the shapes below
    shape: of a latent, [B, C, h, w]
    unet: the tensors of the U-Net, all with G·B rows, those of the unguided half first
    time: those of its time projection, with one row; they get G rows for each evaluation
    pixels: [B, H, W, 3]
    prediction: one of bundle.PREDICTIONS
    form: one of FORMS, where the networks can be captured; `used` is that of the last run
    """

    def __init__(
        self,
        gpu: Gpu,
        graphs: Graphs,
        networks: Networks,
        shape: tuple[int, int, int, int],
        unet: Shapes,
        time: Shapes,
        pixels: Sequence[int],
        prediction: str,
        form: str = "program",
    ) -> None:
        self._gpu, self._graphs, self._networks = gpu, graphs, networks
        self._shape, self._time_shapes = shape, time
        self._rows = unet["latent"][0][0]
        self.form = self.used = form if networks.capturable else "eager"
        self._mirrors = {
            name: Mirror(gpu, *spec)
            for name, spec in unet.items()
            if name not in (*_LATENTS, "noise", "features")
        }
        self._unet = {
            name: self._mirrors[name].device if name in self._mirrors else gpu.empty(*spec)
            for name, spec in unet.items()
            if name != "latent"
        }
        self._input = Mirror(gpu, *unet["latent"])
        self._unet["latent"] = self._input.device
        self._unet.setdefault("timestep", gpu.empty((self._rows,), "f32"))
        half = slice(self._rows - shape[0], self._rows)
        self._guided = {n: t.rows(half.start, half.stop) for n, t in self._unet.items()}
        self._result, self._latent = gpu.empty(shape, "f32"), gpu.pinned(shape, "f32")
        self._seen = gpu.pinned(shape, "f32"), gpu.pinned(shape, "f32")
        self._pixels, self._picture = gpu.empty(pixels, "u8"), gpu.pinned(pixels, "u8")
        self._seeds = Mirror(gpu, (shape[0],), "i64")
        self._guidance = Mirror(gpu, (2,), "i64")  # two float64
        self._counter = Mirror(gpu, (1,), "i32")
        self._factors = gpu.empty((shape[0],), "i64")
        self._sums = gpu.empty((shape[0] * THREADS * 4,), "i64")
        self._mask = Mirror(gpu, (shape[0], 1, *shape[2:]), "f32")
        self._prediction = _PREDICTIONS.index(prediction)
        self._table: Table | None = None
        self._redrawn: Redrawn | None = None
        self._room = Room(0, 0, 0, 0)

    @property
    def conditions(self) -> Mapping[str, Tensor]:
        """What the U-Net reads beside the latents, on the host, to be filled; `condition` tells."""
        return {name: mirror.host for name, mirror in self._mirrors.items()}

    @property
    def time_conditions(self) -> Mapping[str, Tensor]:
        """The same of the time projection; every half has `evaluations` rows."""
        return {name: mirror.host for name, mirror in self._time.items() if name != "timestep"}

    @property
    def evaluations(self) -> int:
        """Rows of the time projection for each half."""
        return self._room.evaluations

    def prepare(self, table: Table) -> None:
        """Makes room for a program, before its conditions are filled."""
        need = self._room.with_room_for(Room.of(table))
        if need == self._room:
            return
        gpu, halves = self._gpu, self._rows // self._shape[0]
        self._graphs.forget(self)  # they hold what is replaced
        self._room, self._table = need, None
        self._words = Mirror(gpu, (need.words,), "i32")
        self._starts = Mirror(gpu, (need.evaluations + 1,), "i32")
        self._slots = gpu.empty((need.slots, *self._shape), "f32")
        batch, *image = self._shape
        self._draws = Mirror(gpu, (need.given * batch, *image), "f32")
        rows = halves * need.evaluations
        times = {
            name: ((rows, *shape[1:]), dtype) for name, (shape, dtype) in self._time_shapes.items()
        }
        self._times = gpu.empty(*times.pop("time")) if times else None
        self._time = {name: Mirror(gpu, *spec) for name, spec in times.items()}

    def condition(self) -> None:
        """Enqueues the copy of what `conditions` and `time_conditions` hold now."""
        for mirror in self._mirrors.values():
            mirror.upload()
        for name, mirror in self._time.items():
            if name != "timestep":
                mirror.upload()

    def redraw(self, redrawn: Redrawn | None) -> None:
        """Enqueues the copy of what is known of the picture that next runs start from."""
        self._redrawn = redrawn
        if redrawn is not None and redrawn.mask is not None:
            self._mask.fill(redrawn.mask)
        if redrawn is not None and redrawn.beside is not None:
            lay_beside(self._input.host, redrawn.beside)
            self._input.upload()

    def draw(
        self,
        table: Table,
        noise: str,
        rng: str,
        seeds: Sequence[int],
        guidance: Guidance,
        progress: Progress | None = None,
    ) -> Tensor:
        """Draws pictures: pixels on the host, u8 [B, H, W, 3], until the next call. Without a
        decoder latents, f32 [B, C, h, w].

        table: of the program, with which `prepare` was called; noise: the kind that it draws
        progress: is told of every evaluation, which takes the form "step": what it raises ends the
            run before the evaluation after the next"""
        first, draw = streams(noise, rng, seeds)
        for k, what in enumerate(table.given):
            out = self._draws.host.rows(k * self._shape[0], (k + 1) * self._shape[0])
            if isinstance(what, tuple):
                draw(out, *what)
            elif what == FIRST:
                first(out)
            elif self._redrawn is not None:
                memoryview(out).cast("B")[:] = memoryview(self._redrawn.latents).cast("B")
        if table.given:
            self._draws.upload()
        self._tell(table, guidance)
        self._seeds.fill(array("Q", seeds))
        one_by_one = progress is not None and self.form == "program"
        self.used = form = "step" if one_by_one else self.form
        rescaled = guidance.rescale > 0
        if form == "program":
            run = self._run(rescaled, counted=False)
            key = "program", table.evaluations, rescaled
            self._launch(form, key, lambda: self._program(table, run))
        else:
            self._steps(table, form, rescaled, progress)
            self._launch(form, "decode", self._decode)
        return self._outcome()

    def evaluate(self, out: Tensor, x: Tensor, sigma: float, t: float, guidance: Guidance) -> None:
        """out = D(x, σ), both on the host, for samplers that depend on data."""
        table = single(sigma, t, guidance.acts(sigma))
        memoryview(self._draws.host).cast("B")[: x.nbytes] = memoryview(x).cast("B")
        self._draws.upload()
        self._tell(table, guidance)
        self.used = form = "step" if self.form == "program" else self.form
        self._steps(table, form, guidance.rescale > 0, None)
        self._gpu.download(self._latent, self._result)
        self._gpu.synchronize()
        memoryview(out).cast("B")[:] = memoryview(self._latent).cast("B")

    def decode(self, latent: Tensor) -> Tensor:
        """The pictures of a latent on the host, as of `draw`."""
        memoryview(self._latent).cast("B")[:] = memoryview(latent).cast("B")
        self._gpu.upload(self._result, self._latent)
        form = "step" if self.form == "program" else self.form
        self._launch(form, "decode", self._decode)
        return self._outcome()

    def latents(self) -> Tensor:
        """The latents of the last run, f32 [B, C, h, w], on the host until the next call."""
        self._gpu.download(self._latent, self._result)
        self._gpu.synchronize()
        return self._latent

    def _outcome(self) -> Tensor:
        """The pictures, or the latents where there is no decoder, when they are there."""
        here, there = (
            (self._latent, self._result)
            if self._networks.decoder is None
            else (self._picture, self._pixels)
        )
        self._gpu.download(here, there)
        self._gpu.synchronize()
        return here

    def _tell(self, table: Table, guidance: Guidance) -> None:
        """Enqueues the copy of what differs from run to run."""
        if table is not self._table:
            self._words.fill(table.words)
            self._starts.fill(table.starts)
            if self._time:
                self._fill_timesteps(table.timesteps)
            self._table = table
        self._guidance.fill(array("d", (guidance.scale, guidance.rescale)))
        self._counter.fill(array("I", (0,)))

    def _fill_timesteps(self, timesteps: array[float]) -> None:
        mirror, room = self._time["timestep"], self._room.evaluations
        filled = array("f", [*timesteps, *(0.0 for _ in range(room - len(timesteps)))])
        mirror.fill(filled * (self._rows // self._shape[0]))

    def _run(self, rescaled: bool, counted: bool) -> Run:
        batch, *image = self._shape
        time = self._unet.get("time")
        return Run(
            words=self._words.device.pointer,
            starts=self._starts.device.pointer,
            counter=self._counter.device.pointer if counted else None,
            slots=self._slots.pointer,
            answer=self._unet["noise"].pointer,
            latent=self._unet["latent"].pointer,
            timestep=self._unet["timestep"].pointer,
            time=None if time is None else time.pointer,
            table=None if self._times is None else self._times.pointer,
            draws=self._draws.device.pointer,
            result=self._result.pointer,
            seeds=self._seeds.device.pointer,
            guidance=self._guidance.device.pointer,
            sums=self._sums.pointer if rescaled else None,
            factors=self._factors.pointer,
            mask=self._mask.device.pointer,
            prediction=self._prediction,
            image=math.prod(image),
            plane=math.prod(image[1:]),
            input=math.prod(self._unet["latent"].shape[1:]),
            images=batch,
            rows=self._rows,
            time_size=0 if time is None else time.shape[1],
            timesteps=self._room.evaluations,
        )

    # What is enqueued, captured or not.

    def _begin(self) -> None:
        if self._networks.time is not None and self._times is not None:
            tensors = {name: mirror.device for name, mirror in self._time.items()}
            self._networks.time.bind({**tensors, "time": self._times})
            self._networks.time.run(self._gpu.stream)

    def _row(self, run: Run, number: int) -> None:
        blocks = -(-math.prod(self._shape) // THREADS)
        self._gpu.launch("step", blocks, THREADS, run, number)

    def _evaluation(self, evaluation: Evaluation, run: Run, number: int) -> None:
        """The network, and the row after it."""
        network = self._networks.unet
        if evaluation.shallow and self._networks.shallow is not None:
            network = self._networks.shallow
        network.bind(self._unet if evaluation.halves else self._guided)
        network.run(self._gpu.stream)
        if run.sums is not None and evaluation.halves:
            self._gpu.launch("sum_up", self._shape[0], THREADS, run, number)
            self._gpu.launch("find_factors", 1, self._shape[0], run, number)
        self._row(run, number)

    def _decode(self) -> None:
        if self._networks.decoder is not None:
            self._networks.decoder.bind({"latent": self._result, "image": self._pixels})
            self._networks.decoder.run(self._gpu.stream)

    def _program(self, table: Table, run: Run) -> None:
        self._begin()
        self._row(run, 0)
        for number, evaluation in enumerate(table.evaluations, 1):
            self._evaluation(evaluation, run, number)
        self._decode()

    def _steps(self, table: Table, form: str, rescaled: bool, progress: Progress | None) -> None:
        """A run but for its decoding, evaluation by evaluation."""
        run = self._run(rescaled, counted=True)

        def begin() -> None:
            self._begin()
            self._row(run, 0)
            self._advance(run)

        self._launch(form, "begin", begin)
        total, marks = len(table.evaluations), list[Mark]()
        seen = self._seen
        for done, evaluation in enumerate(table.evaluations):

            def step(evaluation: Evaluation = evaluation) -> None:
                self._evaluation(evaluation, run, 0)
                self._advance(run)

            self._launch(form, ("step", evaluation, rescaled), step)
            if progress is not None:
                self._gpu.download(seen[done % 2], self._result)
                marks.append(self._gpu.mark())
                if done > 0:  # the one before: the GPU has the next to do meanwhile
                    self._told(marks[done - 1], progress, done, total, seen[(done - 1) % 2])
        if progress is not None and marks:
            self._told(marks[-1], progress, total, total, seen[(total - 1) % 2])

    def _told(
        self, mark: Mark, progress: Progress, done: int, total: int, denoised: Tensor
    ) -> None:
        mark.wait()
        try:
            progress(done, total, denoised)
        except BaseException:
            self._gpu.synchronize()
            raise

    def _advance(self, run: Run) -> None:
        self._gpu.launch("advance", 1, 1, run, 0)

    # How it is enqueued.

    def _launch(self, form: str, key: Hashable, enqueue: Callable[[], None]) -> None:
        if form == "eager":
            enqueue()
        else:
            self._graphs.launch((self, key), enqueue)
