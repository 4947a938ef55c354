"""Plans of a GPU. What ControlNets steer is run by the host, network by network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from PIL import Image

from .. import images, noise, samplers, tiling
from ..bundle import noise_schedule
from ..conditioning import Conditions
from ..devices.calls import Running
from ..devices.cpu import HostRun, Progress, start
from ..devices.cuda import Cuda
from ..devices.graphs import Graphs
from ..devices.runs import Networks
from ..devices.runs import Plan as Recorded
from ..devices.staged import Staged
from ..devices.steps import Table, single, table
from ..guidance import Guidance
from ..opened import Opened
from ..redrawing import Redrawn
from ..request import Resolved
from ..tensors import Tensor
from . import KEPT, Drawn, copied, kept, shapes, told_apart, traced
from .host import CpuPlan, CpuPlans


class GpuPlans:
    """Plans of a GPU. form: one of devices.runs.FORMS."""

    batch = 8

    def __init__(self, opened: Opened, gpu: Cuda, tile: int | None, form: str) -> None:
        self._opened, self._gpu, self._tile = opened, gpu, tile
        self._graphs, self._form = Graphs(gpu), form
        self._kept: dict[tuple[object, ...], GpuPlan] = {}
        self._latest: GpuPlan | CpuPlan | None = None
        self._by_host = CpuPlans(opened, tile)

    @property
    def form(self) -> str:
        if isinstance(self._latest, CpuPlan):
            return self._by_host.form
        return self._form if self._latest is None else self._latest.recorded.used

    @contextmanager
    def lend(
        self, request: Resolved, guidance: Guidance, batch: int, conditions: Conditions
    ) -> Iterator[GpuPlan | CpuPlan]:
        if request.by_host or not conditions.said.plain:
            with self._by_host.lend(request, guidance, batch, conditions) as plan:
                self._latest = plan
                yield plan
        else:
            # A run of its graphs is one call: none of it waits for what others do.
            self._latest = self._get(request, guidance, batch, conditions)
            yield self._latest

    def _get(
        self, request: Resolved, guidance: Guidance, batch: int, conditions: Conditions
    ) -> GpuPlan:
        words = conditions.said.count, conditions.tokens
        shallow = request.cache != 1
        key = (batch, *words, request.width, request.height, shallow)
        if key not in self._kept and len(self._kept) >= KEPT:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._graphs.forget(oldest.recorded)
        given = (self._opened, self._gpu, self._graphs, self._tile, self._form)
        plan = kept(self._kept, key, lambda: GpuPlan(*given, request, batch, *words))
        plan.prepare(request, guidance)
        return plan

    def close(self) -> None:
        for plan in self._kept.values():
            self._graphs.forget(plan.recorded)
        self._kept.clear()
        self._by_host.close()
        self._latest = None


class GpuPlan:
    """A shape's tensors and graphs, and the tables of the programs that it ran last."""

    def __init__(
        self,
        opened: Opened,
        gpu: Cuda,
        graphs: Graphs,
        tile: int | None,
        form: str,
        request: Resolved,
        batch: int,
        rows: int,
        tokens: int,
    ) -> None:
        manifest, sizes = opened.bundle.manifest, opened.bundle.sizes
        sides = (request.height // sizes.scale, request.width // sizes.scale)
        self._tiles = tiling.grid(request.height, request.width, tile, sizes)
        whole = self._tiles.single
        self._decoder = None if whole else Staged(opened["vae_decoder"], gpu)
        networks = Networks(
            opened["unet"],
            opened["unet_shallow"] if request.cache != 1 else None,
            opened.get("time_projection"),
            opened["vae_decoder"] if whole else None,
        )
        self._batch, self._rows = batch, rows
        self._latent = (batch, sizes.channels, *sides)
        self._pixels = (batch, request.height, request.width, 3)
        unet = shapes(
            opened,
            "time_projection",
            "unet",
            rows=rows * batch,
            sides=sides,
            tokens=tokens,
        )
        self._timestep = noise_schedule(opened.bundle.betas).timestep
        self.recorded = Recorded(
            gpu,
            graphs,
            networks,
            self._latent,
            unet,
            shapes(opened, "time_projection", rows=1) if networks.time is not None else {},
            self._pixels,
            manifest.prediction,
            form,
        )
        self._tables: dict[tuple[object, ...], tuple[Table, str]] = {}

    def prepare(self, request: Resolved, guidance: Guidance) -> None:
        """Makes room for the request, before its conditions come."""
        self.recorded.prepare(self._table(request, guidance)[0])

    def _table(self, request: Resolved, guidance: Guidance) -> tuple[Table, str]:
        """The request's table, and the kind of noise that it draws."""
        if not samplers.get(request.sampler).static:
            return single(1.0, 0.0, guidance.scale != 1), ""

        def make() -> tuple[Table, str]:
            found = traced(request)
            steps = table(found, self._timestep, guidance, request.rng, request.from_picture)
            return steps, found.noise

        acts = (guidance.scale == 1, guidance.interval)
        return kept(self._tables, (*told_apart(request), *acts, request.rng), make)

    def redraw(self, redrawn: Redrawn | None) -> None:
        self._redrawn = redrawn
        self.recorded.redraw(redrawn)

    def condition(self, conditions: Conditions) -> None:
        plan = self.recorded
        conditions.fill(plan.conditions, self._rows, self._batch)
        conditions.fill(plan.time_conditions, self._rows, plan.evaluations)
        plan.condition()

    def denoise(
        self,
        request: Resolved,
        guidance: Guidance,
        seeds: Sequence[int],
        progress: Progress | None,
    ) -> Running[Drawn]:
        yield from ()  # its graphs make the calls
        sampler, latents = samplers.get(request.sampler), self.recorded.latents
        if sampler.static:
            steps, kind = self._table(request, guidance)
            drawn = self.recorded.draw(steps, kind, request.rng, seeds, guidance, progress)
        else:
            evaluated = _Evaluated(self.recorded, self._timestep)
            parameters = request.sampler_parameters
            run = HostRun(sampler, request.sigmas, parameters, evaluated, self._latent)
            kind = sampler.noise_kind(parameters)
            first, draw = noise.streams(kind, request.rng, seeds)
            start(run.x, request.sigmas[0], first, self._redrawn)
            run.run(guidance, draw, progress, self._redrawn)
            drawn = run.result if self._decoder is not None else self.recorded.decode(run.result)
            latents = partial(copied, run.result)
        if self._decoder is not None:
            pixels = Tensor.empty(self._pixels, "u8")
            tiling.run(self._decoder, {"latent": drawn, "image": pixels}, self._tiles)
            drawn = pixels
        decoded = images.from_pixels(drawn)

        def pictures() -> Running[list[Image.Image]]:
            yield from ()
            return decoded

        return Drawn(pictures, lambda: copied(latents()))


class _Evaluated:
    """The U-Net of a GPU as a sampler that depends on data calls it."""

    def __init__(self, plan: Recorded, timestep: Callable[[float], float]) -> None:
        self._plan, self.timestep = plan, timestep

    def begin(self) -> None:
        """Nothing: every evaluation binds what it runs."""

    def __call__(self, out: Tensor, x: Tensor, sigma: float, t: float, guidance: Guidance) -> None:
        self._plan.evaluate(out, x, sigma, t, guidance)
