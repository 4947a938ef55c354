"""Plans of the CPU, and of what no graph of a GPU holds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

from PIL import Image

from .. import images, noise, samplers, tiling
from ..bundle import noise_schedule
from ..conditioning import Conditions
from ..devices.calls import Network, Running
from ..devices.cpu import Denoiser, HostRun, Loop, Progress, TimeTable, start
from ..guidance import Guidance
from ..opened import Opened
from ..program import Eval
from ..redrawing import Redrawn, lay_beside
from ..request import Resolved
from ..tensors import Tensor
from ..tiling import Tiled
from . import Drawn, Idle, copied, shapes, told_apart, traced
from .steering import Steering


class CpuPlans:
    """Plans of the CPU. More than 4 images share no call: there they gain nothing."""

    batch, form = 4, "loop"

    def __init__(self, opened: Opened, tile: int | None) -> None:
        self._opened, self._tile = opened, tile
        self.idle: Idle[tuple[object, ...], CpuPlan] = Idle()

    def lend(
        self, request: Resolved, guidance: Guidance, batch: int, conditions: Conditions
    ) -> AbstractContextManager[CpuPlan]:
        words = conditions.said.count, conditions.tokens
        key = (batch, *words, request.width, request.height, *told_apart(request))
        make = partial(CpuPlan, self._opened, self._tile, request, batch, *words)
        return self.idle.lend(key, make)

    def close(self) -> None:
        self.idle.clear()


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
        self._unet = tensors(
            *(opened, "time_projection", "unet"), rows=rows * batch, tokens=tokens, sides=sides
        )
        self._steering = None
        if request.controls:
            self._steering = Steering(opened, request, self._unet, tokens)
        schedule = noise_schedule(opened.bundle.betas)
        denoiser = partial(
            Denoiser,
            tensors=self._unet,
            batch=batch,
            schedule=schedule,
            prediction=manifest.prediction,
        )
        sampler, parameters = samplers.get(request.sampler), request.sampler_parameters
        self._noise, self._levels = sampler.noise_kind(parameters), request.sigmas[:-1]
        self._times: TimeTable | None = None
        self.loop: Loop | HostRun
        engine = opened.on_the_host
        unet: Network = engine("unet") if self._steering is None else self._steering.network
        if request.tiled:
            tiles = tiling.beyond(request.height, request.width, sizes)
            unet = Tiled(unet, tiles, ("latent",), ("noise",), ("features",))
        hoisted = engine("time_projection") if "time_projection" in opened else None
        if sampler.static:
            found = traced(request)
            if hoisted is not None:
                sigmas = (i.sigma for i in found.instructions if isinstance(i, Eval))
                first = {schedule.timestep(sigma): sigma for sigma in reversed(list(sigmas))}
                self._sigmas_of_times = list(first.values())[::-1]
                steps = list(first)[::-1]
                held = tensors(opened, "time_projection", rows=rows * len(steps))
                self._times = TimeTable(hoisted, held, steps, self._unet["time"])
            shallow = None if request.cache == 1 else engine("unet_shallow")
            self._denoiser = denoiser(unet, times=self._times, shallow=shallow)
            self.loop = Loop(found, self._denoiser, latent)
        else:
            self._denoiser = denoiser(unet, projection=hoisted)
            self.loop = HostRun(sampler, request.sigmas, parameters, self._denoiser, latent)

    def redraw(self, redrawn: Redrawn | None) -> None:
        self._redrawn = redrawn
        if redrawn is not None and redrawn.beside is not None:
            lay_beside(self._unet["latent"], redrawn.beside)

    def condition(self, conditions: Conditions) -> None:
        said, self._told = conditions.said, 0
        conditions.fill(self._unet, self._rows, self._batch)
        if self._times is not None:
            steps = [self._step(sigma) for sigma in self._sigmas_of_times]
            conditions.fill(self._times.tensors, self._rows, 1, steps)
            self._times.compute()

        def switch(sigma: float) -> None:
            step = self._step(sigma)
            if said.rows(step) != said.rows(self._told):
                conditions.fill(self._unet, self._rows, self._batch, (step,))
            self._told = step

        self._denoiser.weights = said.weights
        self._denoiser.before = None if said.constant else switch

    def _step(self, sigma: float) -> int:
        """The step that an evaluation at a noise level belongs to."""
        return max(sum(level >= sigma for level in self._levels) - 1, 0)

    def denoise(
        self,
        request: Resolved,
        guidance: Guidance,
        seeds: Sequence[int],
        progress: Progress | None,
    ) -> Running[Drawn]:
        if self._steering is not None:
            begin = request.seeds.index(seeds[0])
            self._steering.tell(request, range(begin, begin + len(seeds)))
        first, draw = noise.streams(self._noise, request.rng, seeds)
        start(self.loop.x, request.sigmas[0], first, self._redrawn)
        yield from self.loop.calls(guidance, draw, progress, self._redrawn)
        latent = copied(self.loop.result)  # others may have the plan before it is decoded

        def pictures() -> Running[list[Image.Image]]:
            # No earlier: memory holds one network at a time.
            decoder = self._opened.on_the_host("vae_decoder")
            pixels = Tensor.empty((self._batch, request.height, request.width, 3), "u8")
            tensors = {"latent": latent, "image": pixels}
            if self._tiles.single:
                yield decoder, tensors
            else:
                tiling.run(decoder, tensors, self._tiles)
            return images.from_pixels(pixels)

        return Drawn(pictures, lambda: latent)


def tensors(
    opened: Opened, *networks: str, rows: int, tokens: int = 0, sides: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """Those tensors, of the CPU."""
    found = shapes(opened, *networks, rows=rows, tokens=tokens, sides=sides)
    return {name: Tensor.empty(*shape) for name, shape in found.items()}
