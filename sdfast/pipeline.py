"""The pipeline: prompt in, pictures out. The one place where the parts meet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import RLock
from time import perf_counter
from typing import TYPE_CHECKING, Any

from PIL import Image

from . import backends, checks, checksums, compiled, previews, samplers, store
from .bundle import Bundle
from .canvas import Canvas, scaled
from .composition import Script, script
from .devices import cuda
from .devices.calls import Running, made
from .devices.cpu import Progress
from .devices.runs import FORMS
from .devices.together import by_rows
from .encoding import Encoder, rows
from .errors import BackendUnavailable, Cancelled, InvalidRequest, nearest
from .guidance import Guidance
from .networks import DENOISERS
from .opened import Opened
from .plans import Drawn, Plans
from .plans.gpu import GpuPlans
from .plans.host import CpuPlans
from .redrawing import Redrawn
from .request import Request, Resolved, resolve
from .tensors import Tensor
from .variants import Variants

if TYPE_CHECKING:
    from . import loras

Callback = Callable[[int, int | None], bool | None]
"""callback(done, evaluations) after each evaluation of the network; evaluations is None for a
sampler whose number depends on the picture. Returning False cancels."""

LOOP = "loop"  # how the CPU runs what a GPU has graphs for
_Shown = Callable[[int, int | None, Tensor], bool | None]


@dataclass(frozen=True)
class Result:
    """What one request brought.

    images: one Pillow picture for each seed
    seeds: of the images; each draws its image again alone
    timings: seconds by stage: "vae_encoder" where a picture was given, "text_encoder", "unet",
        "vae_decoder" and "total". Of what a GPU does in one graph all is counted under "unet"
    request: with every default filled in
    form: how the run was enqueued: "loop" on the CPU; on a GPU "program" or "step", for one graph
        or one a step, or "eager" for none, where a network cannot be captured
    """

    images: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    timings: Mapping[str, float]
    request: Request
    form: str


# diffusers' names for the same things.
_ALIASES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_images_per_prompt": "count",
    "mask_image": "mask",
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
    graphs: str = "program",
    lora_dir: str | Path | None = None,
) -> Pipeline:
    """Opens a bundle by name or path.

    backend: "auto" or one that `sdfast doctor` lists
    device: "cpu", "cuda" or "cuda:N"; "auto" is the first GPU where a backend can use one, else
        the CPU
    threads: of the CPU, 0 for one on each core
    precision: that networks compute in: "auto" is the fastest that the backend has here, or "fp32"
        or "bf16" or "fp16"
    throughput: the rows of a batch are computed side by side, one on each core, where the backend
        can, and small networks that run once a request by one core
    low_memory: each network is opened when it is needed and closed after
    tile: pixels a side of the parts that pictures are decoded in, a size of the bundle's; smaller
        ones need less memory. None: pictures above 1024×1024 pixels are cut up
    graphs: on a GPU, one CUDA graph for a whole "program", one for each "step", or none: "eager";
        "loop" has the host make every call, as on a CPU
    lora_dir: a folder of the LoRA that prompts may name, <lora:NAME:0.8>, beside the bundle's own
    Raises BundleError, BackendUnavailable or InvalidRequest.
    """
    if not 0 <= threads <= 1024:
        raise InvalidRequest(f"threads is {threads}; it must be from 0 (one a core) to 1024")
    if graphs not in (*FORMS, LOOP):
        raise InvalidRequest(f"graphs is {graphs!r}; it must be one of {', '.join((*FORMS, LOOP))}")
    number = _gpu(device, backend)
    keep = partial(compiled.entry, store.home())
    kind = "cpu" if number is None else "cuda"
    chosen = backends.choose(backend, kind)
    found = backends.precision(chosen, precision, kind)
    if number is not None and low_memory:
        raise InvalidRequest(
            "low_memory closes networks between uses, which graphs of a GPU do not outlive: leave "
            "it out, or use device cpu"
        )
    gpu = None if number is None else cuda.Cuda(number, keep)
    options = backends.Options(threads, found, throughput, low_memory, keep, gpu)
    folder = None if lora_dir is None else Path(lora_dir)
    if folder is not None and not folder.is_dir():
        raise InvalidRequest(f"lora_dir {folder} is no folder: give one with .safetensors files")
    return Pipeline(store.load(bundle), chosen, options, tile, graphs, folder)


def _gpu(device: str, backend: str) -> int | None:
    """The number of the GPU that a device is, None for the CPU."""
    kind, _, number = device.partition(":")
    if device == "auto":
        if backend not in ("auto", *backends.BACKENDS["cuda"]) or cuda.reason_unusable():
            return None
        try:
            backends.choose(backend, "cuda")
        except BackendUnavailable:
            return None
        return 0
    if kind == "cpu" and not number:
        return None
    if kind != "cuda" or not (number.isdecimal() or device == "cuda"):
        raise BackendUnavailable(
            f"device {device!r} is unknown{nearest(device, ('auto', 'cpu', 'cuda'))}; use auto, "
            "cpu, cuda or cuda:N, with N a GPU's number from 0"
        )
    if reason := cuda.reason_unusable():
        raise BackendUnavailable(reason)
    return int(number or 0)


class Pipeline:
    """A bundle with its engines. Call it with a prompt; it keeps the plans of recent requests.

    Several threads may call it: one request is drawn after the other.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        options: backends.Options,
        tile: int | None = None,
        graphs: str = "program",
        lora_dir: Path | None = None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.precision = options.precision
        self.device = "cpu" if options.gpu is None else f"cuda:{options.gpu.number}"
        self._opened, self._form = Opened(bundle, backend, options), LOOP
        self._turn = RLock()
        self._by_rows = options.throughput and options.gpu is None
        tile = None if tile is None else checks.side("tile", tile, bundle.sizes)
        self._encoder = Encoder(self._opened, tile)

        def plans(opened: Opened) -> Plans:
            if options.gpu is None or graphs == LOOP:
                return CpuPlans(opened, tile)
            return GpuPlans(opened, options.gpu, tile, graphs)

        memory = store.home() / checksums.MEMORY
        self._variants = Variants(self._opened, plans, lora_dir, memory)

    def __call__(
        self,
        prompt: str | Request,
        negative_prompt: str = "",
        *,
        callback: Callback | None = None,
        preview: previews.Show | None = None,
        preview_every: int = 5,
        generator: Any = None,
        **parameters: Any,
    ) -> Result:
        """Draws one request: a Request, or a prompt and its parameters by name.

        parameters: those of Request, or diffusers' names for them: num_inference_steps,
            guidance_scale, num_images_per_prompt, mask_image
        generator: diffusers' way to give a seed: a torch.Generator; one on the CPU also chooses
            rng="torch", one on CUDA "philox", so that the noise is the one it would draw
        callback: see Callback
        preview: is shown, each `preview_every` evaluations, what the run would draw if it ended
            then: see previews.Show
        Raises InvalidRequest, UnknownSampler or UnknownSchedule for what is out of range (the first
        also for a bundle that draws nothing by itself), LoraError for a LoRA that does not fit, and
        Cancelled when the callback returns False.
        """
        if isinstance(prompt, Request):
            if negative_prompt or parameters or generator is not None:
                raise InvalidRequest("a Request carries every parameter: pass nothing beside it")
            request = prompt
        else:
            given = {"prompt": prompt, "negative_prompt": negative_prompt}
            for name, value in (*parameters.items(), *checks.generator(generator).items()):
                own = _ALIASES.get(name, name)
                if own in given:
                    raise InvalidRequest(f"{own} is given twice: once is enough")
                given[own] = value
            request = Request.from_dict(given)
        make = by_rows if self._by_rows else made
        with self._turn:
            return make(self.drawing(request, callback, preview, preview_every))

    def drawing(
        self,
        request: Request,
        callback: Callback | None = None,
        preview: previews.Show | None = None,
        preview_every: int = 5,
    ) -> Running[Result]:
        """The same as calls of the U-Net for others to make, beside those of other requests, as far
        as the host makes them (devices/calls.py): all of them on a CPU, and with graphs="loop"."""
        task = self.bundle.manifest.task
        if task not in ("text", "inpaint"):
            raise InvalidRequest(
                f"bundle {self.bundle.name} is for task {task}; pictures are drawn by bundles of "
                "task text or inpaint: use one of those"
            )
        resolved = resolve(request, self.bundle, self.precision)
        shown = None
        if preview is not None:
            shown = previews.every(preview_every, previews.previewer(self._opened), preview)
        return self._draw(resolved, callback, shown)

    def _draw(
        self, request: Resolved, callback: Callback | None, show: _Shown | None
    ) -> Running[Result]:
        started, seconds = perf_counter(), defaultdict[str, float](float)
        progress = _Counted(callback, show)
        second, canvas = request.second, request.canvas
        by_latents = second is not None and second.draws and second.resize == "latent"
        pictures, latents = list[Image.Image](), list[Tensor]()
        if canvas is not None and not request.draws:
            pictures = [canvas.untouched((request.width, request.height))] * request.count
            by_latents = False
        else:
            with _timed(seconds, "vae_encoder"):
                start = self._encoder.start(request)
                self._opened.spare("vae_encoder")
            if start is None:
                del seconds["vae_encoder"]
            ends = latents if by_latents else None
            drawn = yield from self._run(request, start, progress, seconds, ends)
            if not by_latents:
                pictures = yield from self._decoded(drawn, canvas, seconds)
        if second is not None and not second.draws:
            pictures = [scaled(picture, (second.width, second.height)) for picture in pictures]
        elif second is not None:
            with _timed(seconds, "vae_encoder"):
                start = self._encoder.again(second, latents if by_latents else pictures)
                self._opened.spare("vae_encoder")
            drawn = yield from self._run(second, start, progress, seconds)
            pictures = yield from self._decoded(drawn, None, seconds)
        seconds["total"] = perf_counter() - started
        told = request.seeds, dict(seconds), request.as_request(), self._form
        return Result(tuple(pictures), *told)

    def _run(
        self,
        request: Resolved,
        start: Redrawn | None,
        progress: _Counted,
        seconds: dict[str, float],
        latents: list[Tensor] | None = None,
    ) -> Running[list[Drawn]]:
        """Denoises all of a request's images; what they are as latents is appended to `latents`."""
        guidance = self._guidance(request)
        said = self._said(request, guidance)
        with _timed(seconds, "text_encoder"):
            variant = self._variants.get(said.loras)
        opened, plans = variant.opened, variant.plans
        # A sampler that depends on data takes each image at its own pace.
        size = plans.batch if samplers.get(request.sampler).static else 1
        batches = [request.seeds[k : k + size] for k in range(0, request.count, size)]
        told, drawn = progress.of(len(batches)), list[Drawn]()
        with variant.conditions() as conditions:
            with _timed(seconds, "text_encoder"):
                conditions.read(said, request.clip_skip)
                conditions.tell(request.width, request.height, request.guidance)
                opened.spare(*self.bundle.manifest.tokenizers, "context_projection")
            with _timed(seconds, "unet"):
                # All batches share a plan, but for a smaller one at the end.
                for count, alike in groupby(batches, len):
                    with plans.lend(request, guidance, count, conditions) as plan:
                        plan.condition(conditions)
                        for seeds in alike:
                            k = request.seeds.index(seeds[0])
                            plan.redraw(None if start is None else rows(start, k, k + count))
                            drawn.append((yield from plan.denoise(request, guidance, seeds, told)))
                            if latents is not None:
                                latents.append(drawn[-1].latents())
                opened.spare(*DENOISERS, "controlnet", "time_projection")
                self._opened.spare("preview_decoder")
        self._form = plans.form
        return drawn

    def _decoded(
        self, drawn: Sequence[Drawn], canvas: Canvas | None, seconds: dict[str, float]
    ) -> Running[list[Image.Image]]:
        pictures = list[Image.Image]()
        with _timed(seconds, "vae_decoder"):
            for one in drawn:
                pictures += yield from one.pictures()
            self._opened.spare("vae_decoder")
        return pictures if canvas is None else [canvas.finished(picture) for picture in pictures]

    def _said(self, request: Resolved, guidance: Guidance) -> Script:
        negative = None if guidance.scale == 1 else request.negative_prompt
        zeros, steps = self.bundle.context.zeros_for_empty, len(request.sigmas) - 1
        said = script(request.prompt, negative, steps, zeros)
        if said.composed and (negative is None or guidance.rescale or guidance.interval):
            raise InvalidRequest(
                "prompts that are composed (AND, weights) are guided at every step: give a "
                "guidance other than 1, and leave out guidance_rescale and guidance_interval"
            )
        return said

    def _guidance(self, request: Resolved) -> Guidance:
        if "guidance" not in self._opened.inputs("time_projection", "unet"):
            return Guidance(request.guidance, request.guidance_rescale, request.guidance_interval)
        if request.negative_prompt or request.guidance_rescale or request.guidance_interval:
            raise InvalidRequest(
                f"bundle {self.bundle.name} embeds the scale of guidance and evaluates the prompt "
                "alone: leave out negative_prompt, guidance_rescale and guidance_interval"
            )
        return Guidance(1.0)

    def free(self) -> int | None:
        """Bytes of the GPU's memory that nobody uses; None on a CPU."""
        gpu = self._opened.options.gpu
        return None if gpu is None else gpu.free()

    def loras(self, prompt: str) -> loras.Key:
        """The LoRA that a prompt names, by their content. Raises InvalidRequest."""
        return self._variants.key(script(prompt, None, 1).loras)

    def close(self) -> None:
        """Frees the engines and buffers; the pipeline opens them again when it is next called."""
        self._variants.close()


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the time that the block takes to the stage's."""
    started = perf_counter()
    yield
    seconds[stage] += perf_counter() - started


class _Counted:
    """A callback over all that a request evaluates: batch after batch, pass after pass."""

    def __init__(self, callback: Callback | None, show: _Shown | None) -> None:
        self._callback, self._show = callback, show
        self._done = 0

    def of(self, batches: int) -> Progress | None:
        """What is told of each evaluation of the next pass, all batches of which evaluate equally
        often."""
        callback, show = self._callback, self._show
        if callback is None and show is None:
            return None
        before = self._done

        def progress(_: int, evaluations: int | None, denoised: Tensor) -> None:
            self._done += 1
            whole = None if evaluations is None else before + batches * evaluations
            going = callback is None or callback(self._done, whole) is not False
            if not going or (show is not None and show(self._done, whole, denoised) is False):
                raise Cancelled(f"cancelled after {self._done} of {whole or 'some'} evaluations")

        return progress
