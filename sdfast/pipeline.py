"""The pipeline: prompt in, pictures out. The one place where the parts meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from . import (
    backends,
    caching,
    compiled,
    images,
    noise,
    program,
    samplers,
    store,
    tiling,
)
from .backends import Engine
from .bundle import Bundle, noise_schedule
from .conditioning import Conditions, TextEncoder, load_tokenizer
from .devices.cpu import Denoiser, HostRun, Loop, Network, Progress, Projected, TimeTable, start
from .errors import BackendUnavailable, Cancelled, InvalidRequest
from .guidance import Guidance
from .program import Eval, Program
from .request import Request, Resolved, check_side, resolve
from .tensors import Tensor, TensorSpec

BATCH = 4  # images that share a call of the network; more gain nothing on a CPU

Callback = Callable[[int, int | None], bool | None]
"""callback(done, evaluations) after each evaluation of the network; evaluations is None for a
sampler whose number depends on the picture. Returning False cancels."""


@dataclass(frozen=True)
class Result:
    """What one request brought.

    images: one Pillow picture for each seed
    seeds: of the images; each draws its image again alone
    timings: seconds by stage: "text_encoder", "unet", "vae_decoder" and "total"
    request: with every default filled in
    """

    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    timings: Mapping[str, float]
    request: Request


# diffusers' names for the same things.
_ALIASES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_images_per_prompt": "count",
}


def load(
    bundle: str | Path = "demo",
    backend: str = "auto",
    device: str = "auto",
    threads: int = 0,
    *,
    precision: str = "auto",
    throughput: bool = False,
    low_memory: bool = False,
    tile: int | None = None,
) -> Pipeline:
    """Opens a bundle by name or path.

    backend: "auto" or one that `sdfast doctor` lists; device: "auto" or "cpu"
    threads: of the CPU, 0 for one on each core
    precision: that networks compute in: "auto" is the fastest that the backend has here, or "fp32"
        or "bf16"
    throughput: the rows of a batch are computed side by side, one on each core, where the backend
        can
    low_memory: each network is opened when it is needed and closed after
    tile: pixels a side of the parts that pictures are decoded in, a size of the bundle's; smaller
        ones need less memory. None: pictures above 1024×1024 pixels are cut up
    Raises BundleError, BackendUnavailable or InvalidRequest.
    """
    if device not in ("auto", "cpu"):
        raise BackendUnavailable(f"device {device!r} is unknown; use auto or cpu")
    if not 0 <= threads <= 1024:
        raise InvalidRequest(f"threads is {threads}; it must be from 0 (one a core) to 1024")
    chosen = backends.choose(backend)
    found = backends.precision(chosen, precision)
    keep = partial(compiled.entry, store.home())
    options = backends.Options(threads, found, throughput, low_memory, keep)
    return Pipeline(store.load(bundle), chosen, options, tile)


@dataclass(frozen=True)
class _Plan:
    """What is allocated and traced once for requests that differ in words, seeds and guidance
    alone: everything the denoising loop and the decoder touch."""

    unet: Mapping[str, Tensor]
    times: TimeTable | None
    loop: Loop | HostRun
    noise: str
    pixels: Tensor


class Pipeline:
    """A bundle with its engines. Call it with a prompt; it keeps the plans of recent requests.

    One request at a time: a Pipeline is not for several threads.
    """

    def __init__(
        self, bundle: Bundle, backend: str, options: backends.Options, tile: int | None = None
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.precision = options.precision
        self._options = options
        self._tile = None if tile is None else check_side("tile", tile, bundle.sizes)
        self._plans: dict[tuple[object, ...], _Plan] = {}

    def _open(self, network: str) -> Engine:
        """The network's engine, kept compiled under the digests of all that it is made of."""
        manifest, options = self.bundle.manifest, self._options
        if (keep := options.keep) is not None:
            read = (manifest.networks[network].file, *manifest.networks[network].weights)
            made_of = {name: manifest.files[name] for name in read}
            options = replace(options, keep=lambda key, build: keep({**made_of, **key}, build))
        return backends.open_engine(self.bundle.network(network), self.backend, options)

    def _inputs(self, *names: str) -> dict[str, TensorSpec]:
        """What those of the networks read that the bundle has."""
        networks = self.bundle.manifest.networks
        read = [networks[name].inputs for name in names if name in networks]
        return {name: spec for inputs in read for name, spec in inputs.items()}

    @cached_property
    def _conditions(self) -> Conditions:
        manifest, context = self.bundle.manifest, self.bundle.context
        inputs = self._inputs("context_projection", "time_projection", "unet")
        encoders = [
            TextEncoder(
                self._open(name), load_tokenizer(self.bundle.path / tokenizer.file), context.tokens
            )
            for name, tokenizer in sorted(manifest.tokenizers.items())  # the second after the first
        ]
        hoisted = "context_projection" in manifest.networks
        projection = self._open("context_projection") if hoisted else None
        return Conditions(encoders, projection, inputs, context)

    @cached_property
    def _time_projection(self) -> Engine | None:
        hoisted = "time_projection" in self.bundle.manifest.networks
        return self._open("time_projection") if hoisted else None

    @cached_property
    def _unet(self) -> Engine:
        return self._open("unet")

    @cached_property
    def _unet_shallow(self) -> Engine:
        return self._open("unet_shallow")

    @cached_property
    def _decoder(self) -> Engine:
        return self._open("vae_decoder")

    def __call__(
        self,
        prompt: str | Request,
        negative_prompt: str = "",
        *,
        callback: Callback | None = None,
        generator: Any = None,
        **parameters: Any,
    ) -> Result:
        """Draws one request: a Request, or a prompt and its parameters by name.

        parameters: those of Request (steps, sampler, schedule, sampler_parameters,
            schedule_parameters, sigmas, discard_penultimate, guidance, guidance_rescale,
            guidance_interval, seed, width, height, count, rng, cache), or diffusers' names for
            them: num_inference_steps, guidance_scale, num_images_per_prompt
        generator: diffusers' way to give a seed: a torch.Generator; one on the CPU also chooses
            rng="torch", one on CUDA "philox", so that the noise is the one it would draw
        callback: see Callback
        Raises InvalidRequest, UnknownSampler or UnknownSchedule for what is out of range (the first
        also for a bundle that needs more than text), and Cancelled when the callback returns False.
        """
        if isinstance(prompt, Request):
            if negative_prompt or parameters or generator is not None:
                raise InvalidRequest("a Request carries every parameter: pass nothing beside it")
            request = prompt
        else:
            given = {"prompt": prompt, "negative_prompt": negative_prompt}
            for name, value in (*parameters.items(), *_seeded(generator).items()):
                own = _ALIASES.get(name, name)
                if own in given:
                    raise InvalidRequest(f"{own} is given twice: once is enough")
                given[own] = value
            request = Request.from_dict(given)
        task = self.bundle.manifest.task
        if task != "text":
            raise InvalidRequest(
                f"bundle {self.bundle.name} is for task {task}, which takes images; this version "
                "draws from text alone: use a bundle of task text"
            )
        return self._draw(resolve(request, self.bundle, self.precision), callback)

    def _draw(self, request: Resolved, callback: Callback | None) -> Result:
        started = perf_counter()
        guidance = self._guidance(request)
        tiles = tiling.grid(request.height, request.width, self._tile, self.bundle.sizes)
        rows = 1 if guidance.scale == 1 else 2
        self._conditions.read(request.prompt, request.negative_prompt if rows == 2 else None)
        self._conditions.tell(request.width, request.height, request.guidance)
        self._spare(self._conditions)
        encoded = perf_counter()
        seconds = {"text_encoder": encoded - started}
        # A sampler that depends on data takes each image at its own pace.
        size = BATCH if samplers.get(request.sampler).static else 1
        batches = [request.seeds[k : k + size] for k in range(0, request.count, size)]
        progress = _progress(callback, len(batches))
        conditioned: _Plan | None = None
        denoised: list[tuple[Tensor, Tensor]] = []
        for seeds in batches:
            plan = self._plan(request, len(seeds), rows)
            if plan is not conditioned:  # all batches share one, but for a smaller last batch
                self._condition(plan, len(seeds), rows)
                conditioned = plan
            _denoise(plan, request, guidance, seeds, progress)
            last = len(denoised) + 1 == len(batches)  # the next one writes to the same memory
            denoised.append((plan.loop.result if last else _copy(plan.loop.result), plan.pixels))
        self._spare(self._unet, self._time_projection, self.__dict__.get("_unet_shallow"))
        seconds["unet"] = perf_counter() - encoded
        pictures: list[Image.Image] = []
        for latent, pixels in denoised:
            tiling.run(self._decoder, {"latent": latent, "image": pixels}, tiles)
            pictures += images.from_pixels(pixels)
        self._spare(self._decoder)
        seconds["vae_decoder"] = perf_counter() - encoded - seconds["unet"]
        seconds["total"] = perf_counter() - started
        full = request.as_request()
        return Result(tuple(pictures), request.seeds, seconds, full)

    def _guidance(self, request: Resolved) -> Guidance:
        if "guidance" not in self._inputs("time_projection", "unet"):
            return Guidance(request.guidance, request.guidance_rescale, request.guidance_interval)
        if request.negative_prompt or request.guidance_rescale or request.guidance_interval:
            raise InvalidRequest(
                f"bundle {self.bundle.name} embeds the scale of guidance and evaluates the prompt "
                "alone: leave out negative_prompt, guidance_rescale and guidance_interval"
            )
        return Guidance(1.0)

    def _condition(self, plan: _Plan, batch: int, rows: int) -> None:
        self._conditions.fill(plan.unet, rows, batch)
        if plan.times is not None:
            self._conditions.fill(plan.times.tensors, rows, plan.times.count)
            plan.times.compute()

    def _plan(self, request: Resolved, batch: int, rows: int) -> _Plan:
        size = (batch, rows, request.width, request.height)
        parameters = tuple(sorted(request.sampler_parameters.items()))
        key = (*size, request.sampler, parameters, request.sigmas, request.cache)
        if key not in self._plans:
            if len(self._plans) >= 8:  # the oldest makes room
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = self._new_plan(request, batch, rows)
        return self._plans[key]

    def _new_plan(self, request: Resolved, batch: int, rows: int) -> _Plan:
        sizes = self.bundle.sizes
        sides = (request.height // sizes.scale, request.width // sizes.scale)
        latent = (batch, sizes.channels, *sides)
        unet = self._tensors("time_projection", "unet", rows=rows * batch, sides=sides)
        schedule = noise_schedule(self.bundle.betas)
        prediction = self.bundle.manifest.prediction
        denoiser = partial(
            Denoiser, tensors=unet, batch=batch, schedule=schedule, prediction=prediction
        )
        sampler, parameters = samplers.get(request.sampler), request.sampler_parameters
        times: TimeTable | None = None
        loop: Loop | HostRun
        if sampler.static:
            traced = _traced(request)
            if self._time_projection is not None:
                sigmas = (i.sigma for i in traced.instructions if isinstance(i, Eval))
                steps = list(dict.fromkeys(map(schedule.timestep, sigmas)))
                table = self._tensors("time_projection", rows=rows * len(steps))
                times = TimeTable(self._time_projection, table, steps, unet["time"])
            shallow = None if request.cache == 1 else self._unet_shallow
            loop = Loop(traced, denoiser(self._unet, times=times, shallow=shallow), latent)
        else:
            network: Network = self._unet
            if self._time_projection is not None:
                network = Projected(self._time_projection, network)
            loop = HostRun(sampler, request.sigmas, parameters, denoiser(network), latent)
        pixels = Tensor.empty((batch, request.height, request.width, 3), "u8")
        return _Plan(unet, times, loop, sampler.noise_kind(parameters), pixels)

    def _tensors(self, *names: str, rows: int, sides: tuple[int, ...] = ()) -> dict[str, Tensor]:
        """The tensors of those of the networks that the bundle has, the latents of `sides`."""
        networks, tokens = self.bundle.manifest.networks, self.bundle.context.tokens
        specs: dict[str, TensorSpec] = {}
        for network in (networks[name] for name in names if name in networks):
            specs |= {**network.inputs, **network.outputs}
        latents = ("latent", "noise", "features")
        return {
            name: spec.empty(rows, *(sides if name in latents else (tokens,)))
            for name, spec in specs.items()
        }

    def _spare(self, *engines: Engine | Conditions | None) -> None:
        """Closes engines that the request does not need any more, where memory is to be spared."""
        for engine in engines if self._options.low_memory else ():
            if engine is not None:
                engine.close()

    def close(self) -> None:
        """Frees the engines and buffers; the pipeline opens them again when it is next called."""
        for name in ("_conditions", "_time_projection", "_unet", "_unet_shallow", "_decoder"):
            if (opened := self.__dict__.pop(name, None)) is not None:
                opened.close()
        self._plans.clear()


def _denoise(
    plan: _Plan,
    request: Resolved,
    guidance: Guidance,
    seeds: tuple[int, ...],
    progress: Progress | None,
) -> None:
    first, draw = noise.streams(plan.noise, request.rng, seeds)
    start(plan.loop.x, request.sigmas[0], first)
    plan.loop.run(guidance, draw, progress)


def _copy(tensor: Tensor) -> Tensor:
    copied = Tensor.empty(tensor.shape, tensor.dtype)
    memoryview(copied).cast("B")[:] = memoryview(tensor).cast("B")
    return copied


def _traced(request: Resolved) -> Program:
    traced = program.trace(request.sampler, request.sigmas, **request.sampler_parameters)
    if not traced.largest_coefficient < 1e6:  # float32 has nothing left after the seventh digit
        raise InvalidRequest(
            f"{request.sampler} cannot follow noise levels as uneven as these: choose another "
            "schedule, other sigmas or another sampler"
        )
    return caching.cached(traced, request.cache)


def _seeded(generator: Any) -> dict[str, Any]:
    """seed and rng of a torch.Generator."""
    if generator is None:
        return {}
    try:
        on_cpu = str(generator.device).startswith("cpu")
        return {"seed": int(generator.initial_seed()), "rng": "torch" if on_cpu else "philox"}
    except AttributeError:
        raise InvalidRequest(
            f"generator is {type(generator).__name__}; it must be one torch.Generator: for several"
            " images give seed and count"
        ) from None


def _progress(callback: Callback | None, batches: int) -> Progress | None:
    """The callback over all batches of a request, which evaluate one after the other."""
    if callback is None:
        return None
    numbers = count(1)

    def progress(_: int, evaluations: int | None) -> None:
        done, whole = next(numbers), None if evaluations is None else batches * evaluations
        if callback(done, whole) is False:
            raise Cancelled(f"cancelled after {done} of {whole or 'some'} evaluations")

    return progress
