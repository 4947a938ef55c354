"""The service: requests in, pictures out, drawn side by side by a worker in a process of its own.

A request that was accepted is a job and ends in exactly one answer. Jobs wait here, in the process
that survives; the worker has at most `limits.running` of them. If it dies or hangs another one is
started, and what it had is drawn once more, each job by itself, so that one which kills workers
takes no other with it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from PIL import Image

from .. import checks, checksums, cpu, store
from ..bundle import MANIFEST
from ..errors import InvalidRequest, SdfastError
from ..provenance import Origin
from ..records import parsed
from ..request import Request
from .costs import Costs, work
from .frames import Frame
from .gate import Gate, Model
from .golden import Golden, Verdict, is_small, model_of
from .jobs import Job, Outcome, Progress
from .keeper import Keeper
from .limits import ORDERS, Limits
from .memory import Memory
from .metrics import Metrics
from .opening import Opening
from .outcomes import outcome, raised
from .process import COMMAND
from .refusals import DeadlineExceeded, Refusal, Stopped, Unavailable

_HOPELESS = 5  # workers in a row that drew nothing


class Service:
    """See the module.

    bundles: names or paths; the first that draws is the default, those of task control are for
        `control`
    backend, device, threads, precision: as `sdfast.load` takes them
    order: "fair", or "shortest" for the requests with the least work left first
    loras: whether prompts may name LoRA, of the bundle's own folder and `lora_dir`
    command: what starts a worker
    Raises BundleError and InvalidRequest.
    """

    def __init__(
        self,
        bundles: Sequence[str | Path] = ("demo",),
        *,
        backend: str = "auto",
        device: str = "auto",
        threads: int = 0,
        precision: str = "auto",
        limits: Limits | None = None,
        order: str = "fair",
        loras: bool = False,
        lora_dir: str | Path | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        if order not in ORDERS:
            raise InvalidRequest(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")
        self.limits = limits or Limits()
        loaded = {bundle.name: bundle for bundle in map(store.load, bundles)}
        steering = {n: b for n, b in loaded.items() if b.manifest.task == "control"}
        self.models: Mapping[str, Model] = {
            name: Model(name, checksums.sha256(bundle.path / MANIFEST), bundle)
            for name, bundle in loaded.items()
            if name not in steering
        }
        if not self.models:
            raise InvalidRequest(
                "there is no bundle to draw with: name one of task text or inpaint"
            )
        self.metrics, self._costs = Metrics(), Costs()
        self._memory = Memory(self.limits.memory)
        self._waiting: list[Job] = []
        self._running: dict[str, Job] = {}
        self._retried: set[str] = set()
        self._golden = Golden(self.models)
        self._origins: dict[str, Origin] = {}
        self._ending = self._ready = False
        self._why: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        on_gpu = device.startswith("cuda")
        opening = Opening(
            bundles={name: str(model.bundle.path) for name, model in self.models.items()},
            backend=backend,
            device=device,
            threads=threads,
            precision=precision,
            lora_dir=None if lora_dir is None else str(lora_dir),
            controls={name: str(bundle.path) for name, bundle in steering.items()},
            rows=self.limits.rows or (16 if on_gpu else 16 * (threads or cpu.cores())),
            order=order,
        )
        folder = None if lora_dir is None else Path(lora_dir)
        some = loras or folder is not None
        self._gate = Gate(self.models, steering, self.limits, self._memory, some, folder)
        self._keeper = Keeper(opening, self.limits, self._heed, self._lost, self._has_work, command)

    # For those who embed it.

    async def start(self) -> None:
        """Returns when it is ready. Raises an SdfastError where it cannot be, as `sdfast.load`."""
        self._changed = asyncio.Event()
        self._failed: SdfastError | None = None
        self._tasks = [asyncio.create_task(self._keeper.run()), asyncio.create_task(self._canary())]
        while not self._ready:
            if self._failed is not None or self._keeper.failures > _HOPELESS:
                await self.close()
                raise self._failed or Unavailable("the worker cannot be started: see the log")
            self._changed.clear()
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def readiness(self) -> str | None:
        """None when requests are drawn, else why not, in a sentence."""
        if self._ending:
            return "the service ends"
        if not self._ready:
            return self._why or "the worker starts"
        return None

    async def submit(
        self,
        request: Request,
        *,
        model: str | None = None,
        owner: str = "",
        priority: int = 0,
        deadline: float | None = None,
        preview_every: int | None = None,
        id: str | None = None,  # noqa: A002
    ) -> Job:
        """Accepts a request.

        owner: who alone may cancel the job, and see it
        priority: higher ones come first
        deadline: seconds from now, up to the limit; after them the job is given up
        preview_every: evaluations between previews; None for none
        id: of the job, which no other may have
        Raises a Refusal, or another SdfastError for a request that nobody could draw.
        """
        try:
            return await self._accept(request, model, owner, priority, deadline, preview_every, id)
        except SdfastError as error:
            reason = error.code if isinstance(error, Refusal) else "invalid"
            self.metrics.rejected.labels(reason).inc()
            raise

    def cancel(self, id: str, owner: str) -> bool:  # noqa: A002
        """Ends a job of that owner before its next step. False where the owner has no such job."""
        job = next((job for job in self.jobs(owner) if job.id == id), None)
        if job is not None:
            self._stop(job, Stopped("the request was cancelled"))
        return job is not None

    def jobs(self, owner: str) -> list[Job]:
        """Those of that owner that wait or run, the oldest first."""
        found = [j for j in self._accepted() if j.owner == owner]
        return sorted(found, key=lambda job: job.begun)

    def model(self, name: str | None = None) -> Model:
        """That of the name; without one the first. Raises UnknownModel."""
        return self._gate.model(name)

    def loras(self, model: str) -> tuple[str, ...]:
        """The LoRA that prompts for a model may name; none where they may name none."""
        return self._gate.named_loras(self.models[model])

    async def drain(self, seconds: float | None = None) -> None:
        """Takes nothing new, and returns when all that was accepted is answered. What takes longer
        than that (`limits.drain`) is answered by a Refusal; when called again, at once."""
        again, self._ending = self._ending, True
        self._told()
        given = self.limits.drain if seconds is None else seconds
        end = monotonic() + (0 if again else given)
        while (self._running or self._waiting) and (left := end - monotonic()) > 0:
            with suppress(TimeoutError):
                self._changed.clear()
                await asyncio.wait_for(self._changed.wait(), left)
        for job in self._accepted():
            self._stop(job, Unavailable("the service ends: ask another one, or later", given))

    async def close(self) -> None:
        """Ends it, and answers what is left by a Refusal."""
        self._ending = self._keeper.ended = True
        for job in self._accepted():
            self._stop(job, Unavailable("the service ends: ask another one, or later", 5.0))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Admission.

    async def _accept(
        self,
        request: Request,
        model: str | None,
        owner: str,
        priority: int,
        deadline: float | None,
        preview_every: int | None,
        id: str | None,  # noqa: A002
    ) -> Job:
        if self._ending or (not self._ready and not self._golden.known):
            raise Unavailable(f"{self.readiness()}: ask again later", 5.0)
        if self._keeper.failures > _HOPELESS:
            raise _gone()
        gate, found = self._gate, self._gate.model(model)
        gate.count(len(self._waiting), len(self._running), self._outstanding())
        precision = self._origins[found.name].precision
        if gate.loras or any((request.image, request.mask, request.control)):  # files and pictures
            full = await asyncio.to_thread(gate.checked, request, found, precision)
        else:
            full = gate.checked(request, found, precision)
        asked = work(found.name, full.resolved)
        seconds = self._costs.predict(asked)
        allowed = gate.deadline(deadline)
        if preview_every is not None:
            checks.whole("preview_every", preview_every, 1, 1000)
        # Nothing is awaited from here on, so that what is asked now is so when it is accepted.
        gate.count(len(self._waiting), len(self._running), self._outstanding())
        gate.time(seconds, allowed, [job.left for job in self._accepted()])
        job = Job(
            id=id or secrets.token_hex(12),
            owner=owner,
            model=found.name,
            request=full.request,
            priority=priority,
            deadline=monotonic() + allowed,
            seconds=seconds,
            pixels=max(asked.pictures),
            inputs=full.inputs,
            preview_every=preview_every,
        )
        if model_of(job.id) is not None:
            raise InvalidRequest(f"id {job.id} begins as the service's own do: choose another one")
        if any(job.id == other.id for other in self._accepted()):
            raise InvalidRequest(f"there is a job {job.id} already: choose another id")
        loop = asyncio.get_running_loop()
        late = DeadlineExceeded(f"the request was not done within {allowed:g} seconds")
        self._timers[job.id] = loop.call_later(allowed, self._stop, job, late)
        self._waiting.append(job)
        self._pump()
        return job

    def _accepted(self) -> list[Job]:
        return [*self._running.values(), *self._waiting]

    def _outstanding(self) -> float:
        """Seconds of predicted work that is left."""
        return sum(job.left for job in self._accepted())

    # From the queue to the worker, and back.

    def _pump(self) -> None:
        """Gives the worker what it may have."""
        self._waiting.sort(key=lambda job: (-job.priority, job.begun))
        while self._ready and self._waiting and len(self._running) < self.limits.running:
            # What a worker was lost over runs alone.
            alone = not self._retried.isdisjoint((*self._running, self._waiting[0].id))
            if alone and self._running:
                break
            job = self._waiting.pop(0)
            self.metrics.queue.observe(monotonic() - job.begun)
            # Not as `to_dict` tells it, which leaves of pictures their digests.
            request = {one.name: getattr(job.request, one.name) for one in fields(Request)}
            said = {"do": "draw", "id": job.id, "model": job.model, "request": request}
            more = {"priority": job.priority, "seconds": job.seconds}
            self._keeper.send(Frame({**said, **more, "preview_every": job.preview_every}))
            self._memory.begun(job.pixels, job.request.count)
            self._running[job.id] = job
            job.sent = monotonic()
            job.tell(Progress("running", seconds_left=self._left(job)))
        self._told()

    def _told(self) -> None:
        """Tells those who wait for a change, and the metrics."""
        self.metrics.running.set(len(self._running))
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.waiting_seconds.set(self._outstanding())
        self.metrics.ready.set(self.readiness() is None)
        self._changed.set()

    def _left(self, job: Job) -> float:
        """Seconds until a job ends that shares the worker with the others."""
        return job.left + sum(min(job.left, o.left) for o in self._running.values() if o is not job)

    def _stop(self, job: Job, error: Exception) -> None:
        if job.id in self._running:
            self._keeper.send(Frame({"do": "cancel", "id": job.id}))
        self._answer(job, error)

    def _answer(self, job: Job, outcome: Outcome | Exception) -> None:
        if job.ended:
            return
        self._running.pop(job.id, None)
        if job in self._waiting:
            self._waiting.remove(job)
        self._retried.discard(job.id)
        self._timers.pop(job.id).cancel()
        name = "ok" if isinstance(outcome, Outcome) else "invalid"
        if isinstance(outcome, Refusal):
            name = outcome.code
        self.metrics.requests.labels(name).inc()
        self.metrics.end_to_end.observe(monotonic() - job.begun)
        if isinstance(outcome, Outcome):
            self.metrics.images.inc(len(outcome.images))
            for stage, seconds in outcome.timings.items():
                self.metrics.stage.labels(stage).observe(seconds)
        job.end(outcome)
        self._pump()

    # What the worker says.

    def _has_work(self) -> bool:
        return bool(self._running) or self._golden.awaited

    def _heed(self, frame: Frame) -> None:
        said = frame.said
        what, name = said["said"], said["id"]
        job = self._running.get(name)
        if what == "opened":
            self._origins = {name: parsed(Origin, one) for name, one in said["models"].items()}
            self._memory.opened(**said["memory"])
            self._ask_for_golden(small=True)
        elif what == "unusable":
            self._failed, self._keeper.ended = raised(said), True
            self._told()
        elif what == "stepped":
            self._stepped(said)
        elif job is None and (model := model_of(name)) is not None:
            self._tried(model, frame)
        elif job is not None and what == "preview":
            self._progressed(job, said["done"], said["evaluations"], frame.pictures)
        elif job is not None and what in ("drawn", "failed"):
            if "trace" in said and said["kind"] != "OutOfMemory":
                self._ask_for_golden()  # what broke may have broken the engines
            self._answer(job, self._outcome(job, frame))

    def _stepped(self, said: Mapping[str, Any]) -> None:
        self._keeper.waits(said["oldest"])
        for step in said["steps"]:
            seconds, rows, run = step["seconds"], step["rows"], step["run"]
            self._keeper.stepped(seconds)
            self.metrics.step.observe(seconds)
            self.metrics.batch.observe(rows)
            if step["shrunk"]:
                self.metrics.shrunk.inc()
            model = self._running[run].model if run in self._running else model_of(run)
            if model is not None and step["latents"] and not is_small(run):
                pixels = step["latents"] * self.models[model].manifest.sizes.scale ** 2
                self._costs.saw_rows(model, pixels, rows, seconds * step["share"])
                if self._ready:  # what is drawn before is drawn alone
                    self._memory.called(pixels, step["at_once"])
        for name, (done, evaluations) in said["progress"].items():
            if (job := self._running.get(name)) is not None:
                self._progressed(job, done, evaluations)

    def _progressed(
        self,
        job: Job,
        done: int,
        evaluations: int | None,
        previews: tuple[Image.Image, ...] = (),
    ) -> None:
        now = job.progress
        if now.done == 0:
            self.metrics.first_step.observe(monotonic() - job.begun)
        if evaluations:
            job.left = job.seconds * (1 - done / evaluations)
        if previews:
            now = replace(now, previews=previews, previewed=done)
        left = self._left(job)
        job.tell(replace(now, done=done, evaluations=evaluations, seconds_left=left))

    def _outcome(self, job: Job, frame: Frame) -> Outcome | Exception:
        found = outcome(job, frame, self._origins[job.model])
        if isinstance(found, Outcome):
            self._saw_pictures(job.model, frame)
            self._memory.saw(job.model, job.pixels, job.request.count, frame.said["grown"])
        return found

    def _saw_pictures(self, model: str, frame: Frame) -> None:
        timings, (width, height) = frame.said["timings"], frame.pictures[0].size
        rest = timings["total"] - timings.get("unet", 0.0)
        self._costs.saw_picture(model, width * height, rest / len(frame.pictures))

    def _lost(self, reason: str) -> None:
        """The worker is gone: its jobs are drawn once more, each alone, by the next one."""
        self._ready, self._why = False, f"the worker {reason}: another one starts"
        self._golden.lost()
        if self._golden.known:
            self.metrics.restarts.labels(reason).inc()
        jobs = list(self._running.values())
        self._running.clear()
        for job in jobs:
            if job.id in self._retried:
                why = "the worker was lost twice over this request: ask for another one"
                self._answer(job, Unavailable(why, 5.0))
            else:
                self._retried.add(job.id)
                job.left = job.seconds
                job.tell(Progress("waiting"))
                self._waiting.append(job)
        if self._keeper.failures > _HOPELESS:
            for job in list(self._waiting):
                self._answer(job, _gone())
        self._told()

    # Whether what it draws is right.

    def _ask_for_golden(self, small: bool = False) -> None:
        for model, frame in self._golden.asked(small):
            sizes = self.models[model].manifest.sizes
            self._memory.begun(sizes.minimum**2 if small else sizes.width * sizes.height, 1)
            self._keeper.send(frame)

    def _tried(self, model: str, frame: Frame) -> None:
        """A golden picture came, or could not be drawn."""
        verdict, more = self._golden.heed(model, frame), self._golden.awaited
        if verdict not in (Verdict.WRONG, Verdict.NONE):
            (drawn,) = frame.pictures
            self._memory.saw(model, drawn.width * drawn.height, 1, frame.said["grown"])
        if verdict in (Verdict.FIRST, Verdict.RIGHT):
            self._saw_pictures(model, frame)
        if verdict is Verdict.NONE:
            self._keeper.kill("cannot draw")
        elif verdict is Verdict.WRONG:
            self._ready, self._why = False, "what was drawn is not what should be"
            self._keeper.kill("drew what it should not")
        elif verdict is Verdict.FIRST:  # which compiled the networks
            self._costs = Costs()
            self._ask_for_golden()
        elif verdict is Verdict.SMALL and not more:
            self._ask_for_golden()
        elif verdict is Verdict.RIGHT and not more and not self._ready:
            self._keeper.proven()
            self._ready, self._why = True, None
            self._pump()
        self._told()

    async def _canary(self) -> None:
        while self.limits.canary:
            await asyncio.sleep(self.limits.canary)
            if self._ready:
                self._ask_for_golden()


def _gone() -> Unavailable:
    return Unavailable("the worker cannot be started again: ask another service", 30.0)
