"""Checks the TensorRT backend on a machine that has TensorRT and a GPU, network by network.

Our tests compare what the backend calls with TensorRT's real bindings, but build and run nothing,
since that takes an NVIDIA GPU. This script does, once for a bundle, and asks two others for their
opinion: ONNX Runtime for the numbers, and polygraphy (TensorRT's own tool) for running the plan and
for looking into it.

    pip install "sdfast[tensorrt,cuda,export]" polygraphy
    sdfast export ./sd15 ./sd15-trt --backend tensorrt
    python benchmarks/trt_check.py ./sd15-trt --out trt-check            # SD 1.5: about 10 minutes
    python benchmarks/trt_check.py demo --network unet --out trt-check   # about a minute

For each network it builds the engine of the recipe's optimum with the backend's own functions, and

1. runs it as the pipeline does and compares it with ONNX Runtime, in the backend's gate;
2. runs the same plan by polygraphy's TrtRunner beside its OnnxrtRunner and lets its Comparator say
   whether the outputs agree, on three sets of inputs;
3. writes `NETWORK.layers.txt`, polygraphy's view of the engine, layer by layer: fused attentions
   have `mha` in their names.

`results.json` has all of it, with versions; report it when something is wrong. The exit code is 1
when a network was refused or polygraphy found its outputs to differ. Nothing goes into the store.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sdfast import store
from sdfast.backends.acceptance import BOUNDS, Place, Verdict, examples, judge
from sdfast.backends.tensorrt import Loaded, host
from sdfast.backends.tensorrt_build import Layers, Network, compiled, inspected
from sdfast.backends.tensorrt_plans import Form, Plan, Profile, profiles
from sdfast.bundle import Bundle
from sdfast.devices.cuda import Cuda
from sdfast.errors import SdfastError
from sdfast.export import engines, recipes

INPUTS = 3  # sets of them that polygraphy runs
PORTABLE, CHECKED = "onnxruntime", "tensorrt"  # its runners

Feed = dict[str, np.ndarray[Any, Any]]
Compared = tuple[dict[str, bool], dict[str, float]]


@dataclass(frozen=True)
class Checked:
    """Of one network. agrees: polygraphy's word on each output; error: what stopped the check"""

    profile: str
    size: int = 0
    layers: Layers | None = None
    verdict: Verdict | None = None
    agrees: dict[str, bool] | None = None
    seconds: dict[str, float] | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        verdict, agrees = self.verdict, self.agrees
        return bool(
            self.error is None
            and verdict is not None
            and verdict.refused is None
            and agrees
            and all(agrees.values())
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--network", action="append", default=[], help="[all of a picture's]")
    parser.add_argument("--recipe", help="[the bundle's]")
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bundle, gpu = store.load(options.bundle), Cuda(options.gpu)
    recipe = recipes.load(options.recipe or bundle.manifest.source["recipe"], "tensorrt")
    options.out.mkdir(parents=True, exist_ok=True)
    checked: dict[str, Checked] = {}
    names = options.network or [n for n in engines.NETWORKS if n in bundle.manifest.networks]
    for name in names:
        checked[name] = check(bundle, recipe, name, gpu, options.out)
        print(f"{name}: {told(checked[name])}", flush=True)
        write(options.out / "results.json", bundle, gpu, checked)
    sys.exit(not all(one.passed for one in checked.values()))


def check(bundle: Bundle, recipe: recipes.Recipe, name: str, gpu: Cuda, out: Path) -> Checked:
    network = engines.network(bundle, name, gpu)
    profile = tuned(profiles(name, network.ports()[0], engines.pictures(bundle, recipe)))
    try:
        return _check(network, profile, gpu, out)
    except SdfastError as error:
        return Checked(str(profile), error=str(error))


def tuned(made: list[Profile]) -> Profile:
    """The static one for what the dynamic one is tuned to, or the only one."""
    wanted = made[-1].best
    return Profile(wanted, wanted, wanted)


def _check(network: Network, profile: Profile, gpu: Cuda, out: Path) -> Checked:
    inputs, outputs = network.ports()
    plan, _ = compiled(network.file, list(inputs), Plan(profile, Form(), host(gpu)), b"", silent)
    file = out / f"{network.name}.plan"
    file.write_bytes(plan)
    loaded = Loaded(plan, gpu, Form(), network.file)
    layers = inspected(loaded.engine)
    context = loaded.context(profile.best)
    given = {name: (port.dtype, profile.best[name]) for name, port in inputs.items()}
    made = {name: (port.dtype, context.shape(name)) for name, port in outputs.items()}
    portable = network.portable()
    verdict = judge(
        (context, Place(gpu)), portable, examples(given, network.words), made, network.precision
    )
    portable[0].close()
    feeds = [
        {name: np.array(tensor) for name, tensor in examples(given, network.words, k).items()}
        for k in range(INPUTS)
    ]
    agrees, seconds = compared(runners(network, plan), feeds, network.precision)
    look(file, out / f"{network.name}.layers.txt")
    return Checked(str(profile), len(plan), layers, verdict, agrees, seconds)


def runners(network: Network, plan: bytes) -> dict[str, Any]:
    """polygraphy's, by their names: of ONNX Runtime and of TensorRT."""
    trt, onnxrt = (import_module(f"polygraphy.backend.{name}") for name in ("trt", "onnxrt"))
    with engines.computable(network.file, network.precision) as graph:
        session = onnxrt.SessionFromOnnx(str(graph))()
    return {
        PORTABLE: onnxrt.OnnxrtRunner(session, name=PORTABLE),
        CHECKED: trt.TrtRunner(trt.EngineFromBytes(plan), name=CHECKED),
    }


def compared(pair: Mapping[str, Any], feeds: list[Feed], precision: str) -> Compared:
    """polygraphy's word on each output over all feeds, and the least seconds of its two runners,
    copies to and from the GPU included."""
    comparator = import_module("polygraphy.comparator")
    results = comparator.Comparator.run(list(pair.values()), data_loader=feeds, warm_up=1)
    bound, agrees = BOUNDS[precision], dict[str, bool]()
    for expected, found in zip(results[PORTABLE], results[CHECKED], strict=True):
        allowed = {
            name: bound.levels
            if values.dtype == np.uint8
            else bound.relative * float(np.abs(np.asarray(values, np.float64)).max())
            for name, values in expected.items()
        }
        within = comparator.SimpleCompareFunc(atol=allowed, rtol=0.0, check_error_stat="max")
        for name, agreed in within(expected, found).items():
            agrees[name] = agrees.get(name, True) and bool(agreed)
    return agrees, {name: min(one.runtime for one in results[name]) for name in pair}


def look(plan: Path, text: Path) -> None:
    """polygraphy's listing of an engine's layers."""
    command = ["polygraphy", "inspect", "model", plan, "--model-type", "engine"]
    done = subprocess.run(
        [*command, "--show", "layers", "attrs"], capture_output=True, text=True, check=False
    )
    text.write_text(done.stdout + done.stderr, encoding="utf-8")


def silent(_doing: str, _part: float) -> None:
    """Tells nobody."""


def told(checked: Checked) -> str:
    if checked.error is not None or checked.verdict is None or checked.layers is None:
        return f"FAILED for {checked.profile}: {checked.error}"
    disagreed = [name for name, agreed in (checked.agrees or {}).items() if not agreed]
    word = checked.verdict.refused or (
        f"polygraphy finds that {', '.join(disagreed)} differ" if disagreed else "passed"
    )
    return (
        f"{word}; {checked.profile}; {checked.verdict}; "
        f"{sum(checked.layers.kinds.values())} layers, "
        f"{checked.layers.attentions} fused attentions, {checked.size / 1e6:.0f} MB"
    )


def write(file: Path, bundle: Bundle, gpu: Cuda, checked: Mapping[str, Checked]) -> None:
    names = ("onnxruntime", "onnxruntime-gpu", "polygraphy", "sdfast")
    record = {
        "bundle": bundle.name,
        "host": asdict(host(gpu)),
        "versions": {name: found for name in names if (found := _version(name))},
        "networks": {name: {**asdict(one), "passed": one.passed} for name, one in checked.items()},
    }
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


if __name__ == "__main__":
    main()
