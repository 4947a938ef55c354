"""Plans: what requests share that differ in words, seeds and guidance alone.

On the CPU a plan is of one program: its latents, its loop, all tensors of its networks. On a GPU
it is of one shape, and programs are data that it is given (devices/runs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from PIL import Image

from . import caching, images, noise, program, samplers, tiling
from .bundle import noise_schedule
from .conditioning import Conditions
from .devices.cpu import Denoiser, HostRun, Loop, Network, Progress, Projected, TimeTable, start
from .devices.cuda import Cuda
from .devices.graphs import Graphs
from .devices.runs import Networks
from .devices.runs import Plan as Recorded
from .devices.staged import Staged
from .devices.steps import Table, single, table
from .errors import InvalidRequest
from .guidance import Guidance
from .opened import Opened
from .program import Eval, Program
from .request import Resolved
from .tensors import Tensor

Pictures = Callable[[], list[Image.Image]]
"""Decodes what was denoised, an image a seed."""

_K = TypeVar("_K")
_V = TypeVar("_V")
KEPT = 8  # plans, programs: the oldest makes room


class Plan(Protocol):
    """See the module."""

    def condition(self, conditions: Conditions) -> None:
        """Takes what a request says to the networks."""

    def denoise(
        self,
        request: Resolved,
        guidance: Guidance,
        seeds: Sequence[int],
        progress: Progress | None,
        again: bool,
    ) -> Pictures:
        """Runs the request's sampler for these seeds. again: whether it is called once more before
        the pictures are."""


class Plans(Protocol):
    """The plans of a pipeline, made when they are asked for."""

    @property
    def batch(self) -> int:
        """Images that share a call of the network at most."""

    @property
    def form(self) -> str:
        """How the last run was enqueued: "loop" by the host, or one of devices.runs.FORMS."""

    def get(
        self, request: Resolved, guidance: Guidance, batch: int, rows: int, tokens: int
    ) -> Plan:
        """The plan for that request, of `batch` images, `rows` rows of each and `tokens` of
        context."""

    def close(self) -> None:
        """Forgets them."""


def traced(request: Resolved) -> Program:
    """The request's program. Raises InvalidRequest for one that float32 cannot follow."""
    found = program.trace(request.sampler, request.sigmas, **request.sampler_parameters)
    if not found.largest_coefficient < 1e6:  # float32 has nothing left after the seventh digit
        raise InvalidRequest(
            f"{request.sampler} cannot follow noise levels as uneven as these: choose another "
            "schedule, other sigmas or another sampler"
        )
    return caching.cached(found, request.cache)


class CpuPlans:
    """Plans of the CPU. More than 4 images share no call: there they gain nothing."""

    batch, form = 4, "loop"

    def __init__(self, opened: Opened, tile: int | None) -> None:
        self._opened, self._tile = opened, tile
        self.kept: dict[tuple[object, ...], CpuPlan] = {}

    def get(
        self, request: Resolved, guidance: Guidance, batch: int, rows: int, tokens: int
    ) -> CpuPlan:
        key = (batch, rows, tokens, request.width, request.height, *_told_apart(request))
        make = partial(CpuPlan, self._opened, self._tile, request, batch, rows, tokens)
        return _kept(self.kept, key, make)

    def close(self) -> None:
        self.kept.clear()


class CpuPlan:
    """Everything that the denoising loop and the decoder touch."""

    def __init__(
        self,
        opened: Opened,
        tile: int | None,
        request: Resolved,
        batch: int,
        rows: int,
        tokens: int,
    ) -> None:
        manifest, sizes = opened.bundle.manifest, opened.bundle.sizes
        sides = (request.height // sizes.scale, request.width // sizes.scale)
        latent = (batch, sizes.channels, *sides)
        self._opened = opened
        self._tiles = tiling.grid(request.height, request.width, tile, sizes)
        self._batch, self._rows = batch, rows
        self._unet = _tensors(
            opened, "time_projection", "unet", rows=rows * batch, sides=sides, tokens=tokens
        )
        schedule = noise_schedule(opened.bundle.betas)
        denoiser = partial(
            Denoiser,
            tensors=self._unet,
            batch=batch,
            schedule=schedule,
            prediction=manifest.prediction,
        )
        sampler, parameters = samplers.get(request.sampler), request.sampler_parameters
        self._noise = sampler.noise_kind(parameters)
        self._times: TimeTable | None = None
        self.loop: Loop | HostRun
        hoisted = opened.get("time_projection")
        if sampler.static:
            found = traced(request)
            if hoisted is not None:
                sigmas = (i.sigma for i in found.instructions if isinstance(i, Eval))
                steps = list(dict.fromkeys(map(schedule.timestep, sigmas)))
                held = _tensors(opened, "time_projection", rows=rows * len(steps))
                self._times = TimeTable(hoisted, held, steps, self._unet["time"])
            shallow = None if request.cache == 1 else opened["unet_shallow"]
            unet = denoiser(opened["unet"], times=self._times, shallow=shallow)
            self.loop = Loop(found, unet, latent)
        else:
            network: Network = opened["unet"]
            if hoisted is not None:
                network = Projected(hoisted, network)
            self.loop = HostRun(sampler, request.sigmas, parameters, denoiser(network), latent)
        self._pixels = Tensor.empty((batch, request.height, request.width, 3), "u8")

    def condition(self, conditions: Conditions) -> None:
        conditions.fill(self._unet, self._rows, self._batch)
        if self._times is not None:
            conditions.fill(self._times.tensors, self._rows, self._times.count)
            self._times.compute()

    def denoise(
        self,
        request: Resolved,
        guidance: Guidance,
        seeds: Sequence[int],
        progress: Progress | None,
        again: bool,
    ) -> Pictures:
        first, draw = noise.streams(self._noise, request.rng, seeds)
        start(self.loop.x, request.sigmas[0], first)
        self.loop.run(guidance, draw, progress)
        latent = _copy(self.loop.result) if again else self.loop.result

        def pictures() -> list[Image.Image]:
            decoder = self._opened["vae_decoder"]  # no earlier: memory holds one network at a time
            tiling.run(decoder, {"latent": latent, "image": self._pixels}, self._tiles)
            return images.from_pixels(self._pixels)

        return pictures


class GpuPlans:
    """Plans of a GPU. form: one of devices.runs.FORMS."""

    batch = 8

    def __init__(self, opened: Opened, gpu: Cuda, tile: int | None, form: str) -> None:
        self._opened, self._gpu, self._tile = opened, gpu, tile
        self._graphs, self._form = Graphs(gpu), form
        self._kept: dict[tuple[object, ...], GpuPlan] = {}
        self._latest: GpuPlan | None = None

    @property
    def form(self) -> str:
        return self._form if self._latest is None else self._latest.recorded.used

    def get(
        self, request: Resolved, guidance: Guidance, batch: int, rows: int, tokens: int
    ) -> GpuPlan:
        shallow = request.cache != 1
        key = (batch, rows, tokens, request.width, request.height, shallow)
        if key not in self._kept and len(self._kept) >= KEPT:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._graphs.forget(oldest.recorded)
        given = (self._opened, self._gpu, self._graphs, self._tile, self._form)
        plan = _kept(self._kept, key, lambda: GpuPlan(*given, request, batch, rows, tokens))
        plan.prepare(request, guidance)
        self._latest = plan
        return plan

    def close(self) -> None:
        for plan in self._kept.values():
            self._graphs.forget(plan.recorded)
        self._kept.clear()
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
        whole = len(self._tiles.rows.starts) == len(self._tiles.columns.starts) == 1
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
        unet = _shapes(
            opened, "time_projection", "unet", rows=rows * batch, sides=sides, tokens=tokens
        )
        self._timestep = noise_schedule(opened.bundle.betas).timestep
        self.recorded = Recorded(
            gpu,
            graphs,
            networks,
            self._latent,
            unet,
            _shapes(opened, "time_projection", rows=1) if networks.time is not None else {},
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
            return table(found, self._timestep, guidance, request.rng), found.noise

        acts = (guidance.scale == 1, guidance.interval)
        return _kept(self._tables, (*_told_apart(request), *acts, request.rng), make)

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
        again: bool,
    ) -> Pictures:
        sampler = samplers.get(request.sampler)
        if sampler.static:
            steps, kind = self._table(request, guidance)
            drawn = self.recorded.draw(steps, kind, request.rng, seeds, guidance, progress)
        else:
            evaluated = _Evaluated(self.recorded, self._timestep)
            parameters = request.sampler_parameters
            run = HostRun(sampler, request.sigmas, parameters, evaluated, self._latent)
            kind = sampler.noise_kind(parameters)
            first, draw = noise.streams(kind, request.rng, seeds)
            start(run.x, request.sigmas[0], first)
            run.run(guidance, draw, progress)
            drawn = run.result if self._decoder is not None else self.recorded.decode(run.result)
        if self._decoder is not None:
            pixels = Tensor.empty(self._pixels, "u8")
            tiling.run(self._decoder, {"latent": drawn, "image": pixels}, self._tiles)
            drawn = pixels
        pictures = images.from_pixels(drawn)
        return lambda: pictures


class _Evaluated:
    """The U-Net of a GPU as a sampler that depends on data calls it."""

    def __init__(self, plan: Recorded, timestep: Callable[[float], float]) -> None:
        self._plan, self.timestep = plan, timestep

    def begin(self) -> None:
        """Nothing: every evaluation binds what it runs."""

    def __call__(self, out: Tensor, x: Tensor, sigma: float, t: float, guidance: Guidance) -> None:
        self._plan.evaluate(out, x, sigma, t, guidance)


def _told_apart(request: Resolved) -> tuple[object, ...]:
    """What programs differ in."""
    parameters = tuple(sorted(request.sampler_parameters.items()))
    return request.sampler, parameters, request.sigmas, request.cache


def _kept(kept: dict[_K, _V], key: _K, make: Callable[[], _V]) -> _V:
    """The value of that key, made where there is none; the oldest of KEPT makes room for it."""
    if key not in kept:
        if len(kept) >= KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = make()
    return kept[key]


def _shapes(
    opened: Opened, *networks: str, rows: int, sides: tuple[int, ...] = (), tokens: int = 0
) -> dict[str, tuple[list[int], str]]:
    """Shape and type of the tensors of those of the networks that the bundle has, the latents of
    `sides`, the context of `tokens`."""
    latents = ("latent", "noise", "features")
    return {
        name: (spec.sides(rows, *(sides if name in latents else (tokens,))), spec.dtype)
        for name, spec in opened.tensors(*networks).items()
    }


def _tensors(
    opened: Opened, *networks: str, rows: int, sides: tuple[int, ...] = (), tokens: int = 0
) -> dict[str, Tensor]:
    """Those tensors, of the CPU."""
    shapes = _shapes(opened, *networks, rows=rows, sides=sides, tokens=tokens)
    return {name: Tensor.empty(*shape) for name, shape in shapes.items()}


def _copy(tensor: Tensor) -> Tensor:
    copied = Tensor.empty(tensor.shape, tensor.dtype)
    memoryview(copied).cast("B")[:] = memoryview(tensor).cast("B")
    return copied
