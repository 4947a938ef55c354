"""What the graphs' options gain at SD 1.5's full size, against torch's own export.

    python benchmarks/graphs.py [--backends onnxruntime openvino-fp32 openvino-bf16] [--forms …]
                                [--side 64] [--runs 5] [--json FILE]

A U-Net with random weights, one row. Each form runs in turn with torch.onnx.export's graph (opset
20, dynamic shapes) in one process; quoted is the median of the ratios of neighbouring runs, by the
clock. What is hoisted is not run: it is computed once a prompt or once a run, not once a step.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import UNet2DConditionModel
from machine import described
from numpy.typing import NDArray

from sdfast.cpu import cores
from sdfast.export import weights
from sdfast.export.graph import operators
from sdfast.export.networks import PLAIN, Options, unet

BACKENDS = ("onnxruntime", "openvino-fp32", "openvino-bf16")
FORMS = {
    "plain": PLAIN,
    "all": Options(),
    "all but fused_attention": Options(fused_attention=False),
    "all but fused_norms": Options(fused_norms=False),
    "all but fused_projections": Options(fused_projections=False),
    "all but hoisted_context": Options(hoisted_context=False),
    "all but hoisted_time": Options(hoisted_time=False),
}
TOKENS = 77
Run = Callable[[], Any]


class Traced(torch.nn.Module):
    """What torch exports."""

    def __init__(self, module: UNet2DConditionModel) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        return self.module(latent, timestep, context, return_dict=False)[0]


def write(folder: Path, side: int) -> dict[str, int]:
    """Every form's graph, and torch's; returns how many nodes each has."""
    torch.manual_seed(0)
    module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    module = module.eval().requires_grad_(False)
    tensors = module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    graphs = {n: unet.unet(shapes, dict(module.config), options) for n, options in FORMS.items()}
    models = {name: graph.model() for name, graph in graphs.items()}
    pairs = [(models[name], graphs[name].weights) for name in graphs]
    weights.as_graph(pairs, tensors, folder / "unet.safetensors")
    for name, model in models.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    batch, height, width = (torch.export.Dim(n) for n in ("batch", "height", "width"))
    sides = {0: batch, 2: 8 * height, 3: 8 * width}
    program = torch.onnx.export(
        Traced(module),
        (torch.randn(2, 4, side, side), torch.tensor([999.0, 1.0]), torch.randn(2, TOKENS, 768)),
        input_names=["latent", "timestep", "context"],
        output_names=["noise"],
        dynamic_shapes=(sides, {0: batch}, {0: batch}),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    (folder / "torch").mkdir()
    program.save(str(folder / "torch" / "torch.onnx"), external_data=True)
    traced = onnx.load(folder / "torch" / "torch.onnx", load_external_data=False)
    return {n: sum(operators(m).values()) for n, m in {**models, "torch": traced}.items()}


def inputs(shapes: Mapping[str, list[Any]], side: int) -> dict[str, NDArray[np.float32]]:
    """Random values for one row."""
    random = np.random.default_rng(0)
    made = {}
    for name, shape in shapes.items():
        known = {"latent": (1, 4, side, side), "timestep": (1,), "time": (1, shape[-1])}
        sized = known.get(name, (1, TOKENS, shape[-1]))
        made[name] = random.standard_normal(sized, dtype=np.float32)
    return made


def onnxruntime_run(file: Path, side: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = cores()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = inputs({i.name: i.shape for i in session.get_inputs()}, side)
    return lambda: session.run(None, feed)


def openvino_run(file: Path, side: int, precision: str) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(file))
    shapes = {
        i.get_any_name(): [d.get_length() if d.is_static else None for d in i.partial_shape]
        for i in model.inputs
    }
    feed = inputs(shapes, side)
    model.reshape({name: list(values.shape) for name, values in feed.items()})
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    return lambda: request.infer(feed)


def opened(backend: str, file: Path, side: int) -> Run:
    if backend == "onnxruntime":
        return onnxruntime_run(file, side)
    return openvino_run(file, side, {"fp32": "f32", "bf16": "bf16"}[backend.split("-")[1]])


def _turn(*runs: Run) -> tuple[float, ...]:
    """The seconds of each, one after the other."""
    times = [perf_counter()]
    for run in runs:
        run()
        times.append(perf_counter())
    return tuple(b - a for a, b in pairwise(times))


def compared(backend: str, forms: list[str], folder: Path, side: int, runs: int) -> dict[str, Any]:
    """Each form's ratio to torch's graph."""
    base = opened(backend, folder / "torch" / "torch.onnx", side)
    found: dict[str, Any] = {}
    for form in forms:
        other = opened(backend, folder / f"{form}.onnx", side)
        base(), other()
        # Who comes first changes by turns: the second is measured up to 1 % slower.
        turns = [_turn(base, other) if k % 2 else _turn(other, base)[::-1] for k in range(runs)]
        found[form] = {
            "ratio": round(statistics.median(b / a for a, b in turns), 3),
            "seconds": round(statistics.median(b for _, b in turns), 3),
            "torch_seconds": round(statistics.median(a for a, _ in turns), 3),
        }
        print(backend, form, found[form], flush=True)
        del other
        gc.collect()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--side", type=int, default=64, help="latents a side; 64 are 512 pixels")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        nodes = write(Path(temporary), given.side)
        print(nodes, flush=True)
        figures = {
            backend: compared(backend, given.forms, Path(temporary), given.side, given.runs)
            for backend in given.backends
        }
    forms = "" if given.forms == list(FORMS) else f"--forms {' '.join(given.forms)} "
    command = f"python benchmarks/graphs.py {forms}--side {given.side} --runs {given.runs}"
    packages = ("torch", "diffusers", "onnxruntime", "openvino")
    found = {**described(command, *packages), "nodes": nodes, "backends": figures}
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
