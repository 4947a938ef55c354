"""sdfast beside the other ways to run the same checkpoint, on a CPU or a GPU.

    sdfast bench peers --bundle demo --checkpoint export/demo/checkpoint --out FOLDER

Each peer draws the same requests (DPM++ 2M on Karras' sigmas, the same prompts, seeds, guidance,
size and noise) in processes of its own: one for its first start, which makes and compiles what it
keeps, then one each round, all peers in turn, so that a machine whose speed drifts treats them
alike. A folder holds `results.json`, written after every process, so that a run goes on where it
was stopped; then `report.md`, the plots, and each peer's last picture.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sdfast.bundle import Bundle
from sdfast.errors import BackendUnavailable, InvalidRequest, nearest
from sdfast.request import Request, Resolved

from .. import report
from ..conditions import checkpoint_sha256, conditions, drawn, opened, prompts
from ..measurements import FIRST_START, kept
from ..processes import (
    FIRST_STEPS,
    PICTURES,
    RESULTS,
    WORK,
    Job,
    Plan,
    Progress,
    Task,
    measure,
    planned,
)

SDFAST = "sdfast"


@dataclass(frozen=True)
class Peer:
    """One of those that are measured.

    environment: the folder of its virtual environment among those of all peers; empty for that of
        sdfast itself
    needs: modules that must be found there
    options: what its script takes
    """

    name: str
    script: str
    environment: str
    needs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


_TORCH = ("with_diffusers.py", "diffusers", ("torch", "diffusers", "transformers", "accelerate"))


def _diffusers(name: str, dtype: str, compiled: bool, device: str) -> Peer:
    return Peer(name, *_TORCH, {"dtype": dtype, "compiled": compiled, "device": device})


PEERS = {
    "cpu": (
        _diffusers("diffusers", "float32", False, "cpu"),
        _diffusers("diffusers-bf16", "bfloat16", False, "cpu"),
        _diffusers("diffusers-compiled", "bfloat16", True, "cpu"),
        Peer("optimum-onnx", "with_optimum_onnx.py", "optimum-onnx", ("optimum.onnxruntime",)),
        Peer(
            *("optimum-openvino", "with_optimum_openvino.py"),
            *("optimum-openvino", ("optimum.intel",)),
        ),
    ),
    "cuda": (
        _diffusers("diffusers-fp16", "float16", False, "cuda"),
        _diffusers("diffusers-fp16-compiled", "float16", True, "cuda"),
    ),
}


def names(load: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that are measured on the device that `sdfast.load` is given."""
    return (SDFAST, *(peer.name for peer in PEERS[_device(load)]))


def _device(load: Mapping[str, Any]) -> str:
    return "cuda" if str(load.get("device", "cpu")).startswith("cuda") else "cpu"


@dataclass(frozen=True)
class Options:
    """What to measure.

    bundle, checkpoint: the same model, as a bundle (name or folder) and in diffusers' layout
    peers: of `names(load)`; empty for all of them
    variants: sdfast otherwise, by name: options of `sdfast.load`, bundle included, and parameters
        of Request, as cache
    load: options of `sdfast.load` for sdfast and its variants; its device, "cpu" without one, is
        that of the peers too
    steps, size, guidance: of the requests; size: the side in pixels; None for the bundle's defaults
    runs: timed pictures a process; rounds: processes after a peer's first start
    environments: the folder of the peers' virtual environments
    """

    bundle: str
    checkpoint: Path
    peers: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    size: int | None = None
    guidance: float | None = None
    runs: int = 3
    rounds: int = 1
    environments: Path = Path(".venv-peers")


def plan(options: Options, out: Path, command: str) -> Plan:
    """Checks the options and finds what is left to measure.

    command: what the results say they were made by
    Raises a subclass of SdfastError for what is wrong or unknown, for a folder that cannot be
    written, and for one whose results were measured under other conditions.
    """
    for name in ("runs", "rounds"):
        if getattr(options, name) < 1:
            raise InvalidRequest(f"{name} is {getattr(options, name)}; it must be 1 or more")
    if not (options.checkpoint / "model_index.json").is_file():
        raise InvalidRequest(
            f"{options.checkpoint} is no checkpoint in diffusers' layout (a folder with "
            "model_index.json), which the peers read: give the one that the bundle was made from"
        )
    bundle = opened(options.bundle, options.load)
    side, guidance = options.size, options.guidance
    asked = Request("x", steps=options.steps, width=side, height=side, guidance=guidance)
    request = drawn(bundle, asked)
    measured = tuple(_peers(options, bundle))
    common, date = conditions(
        bundle,
        checkpoint_sha256=checkpoint_sha256(options.checkpoint),
        **{name: getattr(request, name) for name in ("width", "height", "steps", "guidance")},
        runs=options.runs,
    )
    results = kept(out / RESULTS, "peers", common)
    tasks = tuple(_tasks(options, measured, request, prompts(bundle), out))
    return planned(out, results, tasks, command, date)


def run(plan: Plan, progress: Progress = lambda cost, doing: None) -> tuple[Path, ...]:
    """Measures what is left, and writes the report: the files written. Raises OutputError."""
    results = measure(plan, progress)
    return (plan.out / RESULTS, *report.write(results, plan.out))


def variant(text: str) -> tuple[str, dict[str, Any]]:
    """NAME:OPTION=VALUE,OPTION=VALUE as a variant of sdfast; values read as JSON where they are.
    Raises InvalidRequest."""
    name, colon, options = text.partition(":")
    pairs = [pair.partition("=") for pair in options.split(",")]
    if not (name and colon and all(key and value for key, _, value in pairs)):
        raise InvalidRequest(
            f"variant {text!r} must be NAME:OPTION=VALUE,…, such as sdfast-cached:cache=3"
        )
    return name, {key.strip(): _value(value.strip()) for key, _, value in pairs}


def variants(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Several of them by name. Raises InvalidRequest."""
    found: dict[str, dict[str, Any]] = {}
    for name, options in map(variant, texts):
        if name in found:
            raise InvalidRequest(f"variant {name!r} is given twice: choose another name for one")
        found[name] = options
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- who is measured ------------------------------------------------------------------------------


def _peers(options: Options, bundle: Bundle) -> Iterator[Peer]:
    """sdfast and its variants, then the others, as far as they are asked for."""
    known = names(options.load)
    asked = options.peers or known
    for name in asked:
        if name not in known:
            raise InvalidRequest(
                f"peer {name!r} is unknown{nearest(name, known)}; use {', '.join(known)}"
            )
    for name, given in {SDFAST: {}, **options.variants}.items():
        if name in known and given:
            raise InvalidRequest(f"variant {name!r} has the name of a peer: choose another")
        if not re.fullmatch(r"\w[\w.-]*", name):  # it names files
            raise InvalidRequest(f"variant {name!r} must be named by letters, digits, . - and _")
        if name != SDFAST or name in asked:
            yield _sdfast(name, {"device": "cpu", **options.load, **given}, bundle)
    yield from (peer for peer in PEERS[_device(options.load)] if peer.name in asked)


def _sdfast(name: str, given: Mapping[str, Any], bundle: Bundle) -> Peer:
    """sdfast with some options, checked here rather than in its process."""
    wanted = {field: value for field, value in given.items() if field in _request_fields()}
    load = {option: value for option, value in given.items() if option not in wanted}
    own = opened(str(load.pop("bundle", bundle.path)), load)
    drawn(own, Request.from_dict({"prompt": "x", **wanted}))
    options = {"load": {"bundle": str(own.path.resolve()), **load}, "request": wanted}
    return Peer(name, "with_sdfast.py", "", ("sdfast",), options)


def _request_fields() -> frozenset[str]:
    return frozenset(Request("x").to_dict())


def _tasks(
    options: Options,
    measured: Sequence[Peer],
    request: Resolved,
    words: tuple[str, ...],
    out: Path,
) -> Iterator[Task]:
    for round_ in range(options.rounds + 1):
        for peer in measured:
            python, unusable = _environment(peer, options.environments)
            first = min(FIRST_STEPS, request.steps)
            job = Job(
                prompts=words,
                steps=first if round_ == FIRST_START else request.steps,
                first_steps=first,
                guidance=request.guidance,
                width=request.width,
                height=request.height,
                count=1,
                runs=1 if round_ == FIRST_START else options.runs,
                checkpoint=str(options.checkpoint.resolve()),
                work=str((out / WORK / peer.name).resolve()),
                picture=str((out / PICTURES / f"{peer.name}.png").resolve()),
                options=dict(peer.options),
            )
            cost = 0.0 if unusable else float(job.first_steps + job.runs * job.steps)
            settings = {"options": _named(peer.options)}
            yield Task(peer.name, round_, settings, peer.script, python, job, cost, unusable)


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """A peer's options with its bundle by name: where it lies is nobody's business."""
    load = dict(options.get("load", {}))
    if "bundle" in load:
        load["bundle"] = Path(load["bundle"]).name
    return {**options, "load": load} if load else dict(options)


def _environment(peer: Peer, environments: Path) -> tuple[Path, str | None]:
    """What runs a peer, and why it cannot."""
    own = environments / peer.environment / "bin" / "python"
    python = own.absolute() if peer.environment and own.is_file() else Path(sys.executable)
    missing = _missing(python, peer.needs)
    if not missing:
        return python, None
    return python, f"{missing} is not installed: `make peers` installs it in {environments}"


@cache
def _missing(python: Path, modules: tuple[str, ...]) -> str:
    """The first of the modules that this Python does not find, or nothing."""
    code = (
        "import sys; from importlib.util import find_spec\n"
        "def found(name):\n"
        "    parent = name.rpartition('.')[0]\n"
        "    return (not parent or found(parent)) and find_spec(name) is not None\n"
        "print(next((name for name in sys.argv[1:] if not found(name)), ''))"
    )
    try:
        command = [str(python), "-c", code, *modules]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendUnavailable(
            f"{python} does not run ({error}): remove its folder and make it again by `make peers`"
        ) from error
    return done.stdout.strip()
