"""Batches on a Ray cluster, through Ray Data: a pipeline in an actor on every place for one.

The driver plans, and it alone writes: pictures come back as pixels and go into the folder as those
of a batch on one machine do, so the folder says what is done, whatever dies. A run whose node is
lost is drawn by another one; should two answers come, the first is kept. The requests, their runs
and the threads of each pipeline are those of a batch on one machine, and so are the pictures.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import ray
import ray.data
from PIL import Image

from .. import batches, canvas, control, images, pipeline, store
from ..batches import Failure
from ..errors import SdfastError
from ..picture_folder import Folder, Record
from ..pipeline import Pipeline
from ..provenance import Origin
from ..records import parsed
from ..request import Request
from ..sweeps import Picture
from .bundles import Offer, offer, received
from .connection import places

_BLOCKS = 2000  # tasks at most: of more runs each has several, which are lost together
_RESTARTS = 5  # of an actor: a picture that kills processes ends with the last of them
_BLOCK_BYTES = 16 << 20
_BEHIND = 2  # tasks that an actor has, of which it does one


def draw(
    planned: Sequence[Sequence[Picture]],
    pipe: Pipeline,
    folder: Folder,
    opening: Mapping[str, Any],
    callback: Callable[[Sequence[Picture]], Any] = lambda _run: None,
) -> Iterator[list[Record] | Failure]:
    """As `batches.draw`, on the cluster that this process is connected to.

    pipe: as every actor opens one, which this process plans with
    opening: what it was opened by, its threads too: an actor without a GPU has as many
        cores
    callback: is told each run that has come
    Raises OutputError, and BackendUnavailable where a node cannot draw as this one does.
    """
    if not planned:
        return
    on_gpu = pipe.device != "cpu"
    cores = 1 if on_gpu else opening["threads"]
    actors = min(places(cores, on_gpu), len(planned))
    bundles = {str(one["bundle"]) for run in planned for one in _steering(run[0].request)}
    painter = {
        "own": offer(pipe.bundle),
        "controls": {name: offer(store.load(name)) for name in sorted(bundles)},
        "opening": {
            **opening,
            "backend": pipe.backend,
            "precision": pipe.precision,
            "device": "cuda" if on_gpu else "cpu",  # the one that Ray gives it
        },
    }
    _prepare()
    rows = [_row(number, run, pipe) for number, run in enumerate(planned)]
    drawn = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS)).map_batches(
        _Painter,
        fn_constructor_kwargs=painter,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=cores,
        num_gpus=1 if on_gpu else None,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=actors,
            initial_size=actors,
            max_tasks_in_flight_per_actor=_BEHIND,
        ),
        ray_remote_args_fn=_retrying,
    )
    missing = dict(enumerate(planned))
    for answer in drawn.iter_rows():
        run = missing.pop(answer["run"], None)
        if run is not None:  # the first answer of the two that a lost node may bring
            callback(run)
            yield from _kept(run, answer, folder)
    for run in missing.values():
        yield Failure(
            _place(run), "the processes that drew it were lost, or failed: see the log of Ray"
        )


def _retrying() -> dict[str, Any]:
    # Tasks are tried again while a node that is lost is not known to be, which takes many tries.
    return {"max_restarts": _RESTARTS, "max_task_retries": -1}


def _prepare() -> None:
    """What does not go by an argument, for this process."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # others go on where one cannot be drawn
    context.target_max_block_size = _BLOCK_BYTES  # by which Ray bounds what runs
    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)  # its own files have what it logs


def _kept(
    run: Sequence[Picture], answer: Mapping[str, Any], folder: Folder
) -> Iterator[list[Record] | Failure]:
    """What came of a run, written."""
    said, pixels = json.loads(answer["said"]), answer["pixels"]
    origin: Origin = parsed(Origin, said["origin"])
    named = {picture.name: picture for picture in run}
    at = 0
    for one in said["outcomes"]:
        if "reason" in one:
            yield Failure(one["place"], one["reason"])
            continue
        records = []
        for made in one["pictures"]:
            width, height = made["size"]
            data = pixels[at : at + 3 * width * height]
            at += len(data)
            picture, image = named[made["name"]], Image.frombytes("RGB", (width, height), data)
            seconds, together, place = made["seconds"], made["together"], made["place"]
            records.append(
                folder.add(picture.name, image, picture.request, seconds, together, place, origin)
            )
        yield records


def _row(number: int, run: Sequence[Picture], pipe: Pipeline) -> dict[str, Any]:
    """A run for an actor on any node: its pictures are in it, and not where they lie."""
    request = run[0].request
    values = request.to_dict()
    for name, mode in (("image", "RGB"), ("mask", "L")):
        if (given := getattr(request, name)) is not None:
            values[name] = _as_url(canvas.opened(name, given, mode))
    values["control"] = control.told(
        request.control, lambda given: _as_url(canvas.opened("control's image", given))
    )
    said = {
        "request": values,
        "names": [picture.name for picture in run],
        "loras": _loras(request, pipe),
    }
    return {"run": number, "asked": json.dumps(said)}


def _as_url(picture: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(images.png(picture)).decode()}"


def _steering(request: Request) -> Sequence[Mapping[str, Any]]:
    given = request.control or ()
    return (given,) if isinstance(given, Mapping) else given


def _loras(request: Request, pipe: Pipeline) -> list[Any]:
    """Those that its prompts name, by their content, as JSON has them."""
    prompts = (request.prompt, str((request.hires or {}).get("prompt") or ""))
    return [[list(pair) for pair in pipe.loras(prompt)] for prompt in prompts]


def _place(run: Sequence[Picture]) -> str:
    return f"{run[0].request.prompt!r}, seed {run[0].request.seed}"


class _Painter:
    """One pipeline in an actor."""

    def __init__(
        self, own: Offer, controls: Mapping[str, Offer], opening: Mapping[str, Any]
    ) -> None:
        self._pipe = pipeline.load(received(own), **opening)
        self._controls = {name: str(received(one)) for name, one in controls.items()}
        origin = Origin.of(self._pipe, opening["threads"], opening["tile"], opening["throughput"])
        self._origin = asdict(origin)

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        answers: dict[str, list[Any]] = {"run": [], "said": [], "pixels": []}
        for row in rows.to_pylist():
            outcomes, pixels = self._drawn(json.loads(row["asked"]))
            answers["run"].append(row["run"])
            answers["said"].append(json.dumps({"origin": self._origin, "outcomes": outcomes}))
            answers["pixels"].append(pixels)
        return answers

    def _drawn(self, asked: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bytes]:
        values = asked["request"]
        for one in values["control"] or ():
            one["bundle"] = self._controls[one["bundle"]]
        first = Request.from_dict(values)
        run = [
            Picture(0, (), place, replace(first, seed=(first.seed or 0) + place), name)
            for place, name in enumerate(asked["names"])
        ]
        try:
            if _loras(first, self._pipe) != asked["loras"]:
                reason = "a LoRA that it names is another file on the node that was to draw it"
                return [{"place": _place(run), "reason": reason}], b""
        except SdfastError as error:
            return [{"place": _place(run), "reason": str(error)}], b""
        pixels: list[bytes] = []

        def add(
            name: str,
            image: Image.Image,
            _request: Request,
            seconds: Mapping[str, float],
            together: int,
            place: int,
        ) -> dict[str, Any]:
            pixels.append(image.convert("RGB").tobytes())
            told = {"name": name, "size": image.size, "seconds": dict(seconds)}
            return {**told, "together": together, "place": place}

        outcomes = [
            {"place": one.place, "reason": one.reason}
            if isinstance(one, Failure)
            else {"pictures": one}
            for one in batches.draw([run], self._pipe, add)
        ]
        return outcomes, b"".join(pixels)
