"""The pipeline: prompt in, pictures out. The one place where the parts meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from . import images, noise, program, samplers, store
from .backends import Engine, choose, open_engine
from .bundle import Bundle, noise_schedule
from .conditioning import TextEncoder, load_tokenizer
from .devices.cpu import Denoiser, HostRun, Loop, Progress, start
from .errors import BackendUnavailable, Cancelled, InvalidRequest
from .guidance import Guidance
from .program import Program
from .request import Request, Resolved, resolve
from .tensors import Tensor

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
    bundle: str | Path = "demo", backend: str = "auto", device: str = "auto", threads: int = 0
) -> Pipeline:
    """Opens a bundle by name or path.

    backend: "auto" or one that `sdfast doctor` lists; device: "auto" or "cpu"
    threads: of the CPU, 0 for one on each core
    Raises BundleError or BackendUnavailable.
    """
    if device not in ("auto", "cpu"):
        raise BackendUnavailable(f"device {device!r} is unknown; use auto or cpu")
    if not 0 <= threads <= 1024:
        raise InvalidRequest(f"threads is {threads}; it must be from 0 (one a core) to 1024")
    return Pipeline(store.load(bundle), backend, threads)


@dataclass(frozen=True)
class _Plan:
    """What is allocated and traced once for requests that differ in words, seeds and guidance
    alone: everything the denoising loop and the decoder touch."""

    unet: Mapping[str, Tensor]
    loop: Loop | HostRun
    noise: str
    pixels: Tensor


class Pipeline:
    """A bundle with its engines. Call it with a prompt; it keeps the plans of recent requests.

    One request at a time: a Pipeline is not for several threads.
    """

    def __init__(self, bundle: Bundle, backend: str, threads: int) -> None:
        self.bundle = bundle
        self.backend = choose(backend)
        self._threads = threads
        self._plans: dict[tuple[object, ...], _Plan] = {}

    def _open(self, network: str) -> Engine:
        return open_engine(self.bundle.network(network), self.backend, self._threads)

    @cached_property
    def _text(self) -> TextEncoder:
        context = self.bundle.manifest.context
        tokenizer = load_tokenizer(self.bundle.path / self.bundle.manifest.tokenizer)
        return TextEncoder(self._open("text_encoder"), tokenizer, context.tokens, context.width)

    @cached_property
    def _unet(self) -> Engine:
        return self._open("unet")

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
            guidance_interval, seed, width, height, count, rng), or diffusers' names for them:
            num_inference_steps, guidance_scale, num_images_per_prompt
        generator: diffusers' way to give a seed: a torch.Generator; one on the CPU also chooses
            rng="torch", one on CUDA "philox", so that the noise is the one it would draw
        callback: see Callback
        Raises InvalidRequest, UnknownSampler or UnknownSchedule for what is out of range, and
        Cancelled when the callback returns False.
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
        return self._draw(resolve(request, self.bundle), callback)

    def _draw(self, request: Resolved, callback: Callback | None) -> Result:
        started = perf_counter()
        rows = 1 if request.guidance == 1 else 2
        texts = [("negative prompt", request.negative_prompt), ("prompt", request.prompt)]
        self._text.encode(texts[-rows:])
        encoded = perf_counter()
        seconds = {"text_encoder": encoded - started, "unet": 0.0, "vae_decoder": 0.0}
        pictures: list[Image.Image] = []
        # A sampler that depends on data takes each image at its own pace.
        size = BATCH if samplers.get(request.sampler).static else 1
        batches = [request.seeds[k : k + size] for k in range(0, request.count, size)]
        progress = _progress(callback, len(batches))
        for seeds in batches:
            pixels, unet, decoder = self._draw_batch(request, seeds, rows, progress)
            pictures += images.from_pixels(pixels)
            seconds["unet"] += unet
            seconds["vae_decoder"] += decoder
        seconds["total"] = perf_counter() - started
        full = request.as_request()
        return Result(tuple(pictures), request.seeds, seconds, full)

    def _draw_batch(
        self, request: Resolved, seeds: tuple[int, ...], rows: int, progress: Progress | None
    ) -> tuple[Tensor, float, float]:
        started = perf_counter()
        plan = self._plan(request, len(seeds), rows)
        _repeat(plan.unet["context"], self._text.context, rows, len(seeds))
        guidance = Guidance(request.guidance, request.guidance_rescale, request.guidance_interval)
        first, draw = noise.streams(plan.noise, request.rng, seeds)
        start(plan.loop.x, request.sigmas[0], first)
        plan.loop.run(guidance, draw, progress)
        denoised = perf_counter()
        self._decoder.bind({"latent": plan.loop.result, "image": plan.pixels})
        self._decoder.run()
        return plan.pixels, denoised - started, perf_counter() - denoised

    def _plan(self, request: Resolved, batch: int, rows: int) -> _Plan:
        size = (batch, rows, request.width, request.height)
        parameters = tuple(sorted(request.sampler_parameters.items()))
        key = (*size, request.sampler, parameters, request.sigmas)
        if key not in self._plans:
            if len(self._plans) >= 8:  # the oldest makes room
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = self._new_plan(request, batch, rows)
        return self._plans[key]

    def _new_plan(self, request: Resolved, batch: int, rows: int) -> _Plan:
        manifest = self.bundle.manifest
        scale, channels = manifest.sizes.scale, manifest.sizes.channels
        sides = (request.height // scale, request.width // scale)
        shape = (rows * batch, channels, *sides)
        unet = {
            "latent": Tensor.empty(shape, "f32"),
            "timestep": Tensor.empty((rows * batch,), "f32"),
            "context": Tensor.empty(
                (rows * batch, manifest.context.tokens, manifest.context.width), "f32"
            ),
            "noise": Tensor.empty(shape, "f32"),
        }
        latent = (batch, channels, *sides)
        schedule = noise_schedule(manifest.betas)
        denoiser = Denoiser(self._unet, unet, batch, schedule, manifest.prediction)
        sampler, parameters = samplers.get(request.sampler), request.sampler_parameters
        loop: Loop | HostRun
        if sampler.static:
            loop = Loop(_traced(request), denoiser, latent)
        else:
            loop = HostRun(sampler, request.sigmas, parameters, denoiser, latent)
        pixels = Tensor.empty((batch, request.height, request.width, 3), "u8")
        return _Plan(unet, loop, sampler.noise_kind(parameters), pixels)

    def close(self) -> None:
        """Frees the engines and buffers; the pipeline opens them again when it is next called."""
        for name in ("_text", "_unet", "_decoder"):
            if (opened := self.__dict__.pop(name, None)) is not None:
                opened.close()
        self._plans.clear()


def _traced(request: Resolved) -> Program:
    traced = program.trace(request.sampler, request.sigmas, **request.sampler_parameters)
    if not traced.largest_coefficient < 1e6:  # float32 has nothing left after the seventh digit
        raise InvalidRequest(
            f"{request.sampler} cannot follow noise levels as uneven as these: choose another "
            "schedule, other sigmas or another sampler"
        )
    return traced


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


def _repeat(context: Tensor, encoded: Tensor, rows: int, batch: int) -> None:
    """context [rows·B, n, C] = the last `rows` rows of encoded [2, n, C], each B times."""
    source, target = memoryview(encoded).cast("B"), memoryview(context).cast("B")
    size = encoded.nbytes // 2
    for row in range(rows):
        text = source[(2 - rows + row) * size : (3 - rows + row) * size]
        for image in range(batch):
            start = (row * batch + image) * size
            target[start : start + size] = text


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
