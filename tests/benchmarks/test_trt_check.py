"""The check of the TensorRT backend on a machine without TensorRT: polygraphy itself, and around it
ONNX Runtime in TensorRT's place."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from backends import tensorrt_on_cpu
from backends.tensorrt_on_cpu import Gpu
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

from sdfast import store
from sdfast.backends import tensorrt_library
from sdfast.backends.acceptance import examples
from sdfast.benchmarks import trt_check

NETWORK = "context_projection"
FILE = store.load("demo").network(NETWORK)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_on_cpu)
    monkeypatch.setattr(trt_check, "Cuda", Gpu)
    monkeypatch.setattr("sdfast.backends.acceptance.MARGIN", 0.1)
    monkeypatch.setattr(trt_check, "look", lambda plan, text: text.write_text("layers"))
    tensorrt_library.log.cache_clear()
    yield tensorrt_on_cpu
    tensorrt_on_cpu.faults.clear()
    tensorrt_library.log.cache_clear()


def runner(file: Path, name: str) -> Any:
    return OnnxrtRunner(SessionFromOnnx(str(file)), name=name)


def scaled(tmp_path: Path, factor: float) -> Path:
    """The network with outputs that much larger."""
    model = onnx.load(FILE)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    weight = onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor")
    model.graph.initializer.append(weight)
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], [output]))
    file = tmp_path / "scaled.onnx"
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize(("factor", "agrees"), [(1.0, True), (1.01, True), (1.2, False)])
def test_polygraphy_says_whether_outputs_agree(factor: float, agrees: bool, tmp_path: Path) -> None:
    pair = {
        trt_check.PORTABLE: runner(FILE, trt_check.PORTABLE),
        trt_check.CHECKED: runner(scaled(tmp_path, factor), trt_check.CHECKED),
    }
    feeds = [
        {name: np.array(t) for name, t in examples({"context": ("f32", (1, 77, 96))}, 1, k).items()}
        for k in range(2)
    ]
    found, seconds = trt_check.compared(pair, feeds, "fp32")
    assert found == {"keys_values": agrees}
    assert min(seconds.values()) > 0


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> int:
    """The exit code of the script."""
    names = (trt_check.PORTABLE, trt_check.CHECKED)
    pair = lambda network, plan: {name: runner(network.file, name) for name in names}  # noqa: E731
    monkeypatch.setattr(trt_check, "runners", pair)
    monkeypatch.setattr(sys, "argv", ["trt_check.py", "demo", "--out", str(out), *words])
    with pytest.raises(SystemExit) as ended:
        trt_check.main()
    return int(ended.value.code or 0)


def test_the_script_writes_what_it_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "--network", NETWORK, "--network", "time_projection") == 0
    said = capsys.readouterr().out
    assert f"{NETWORK}: passed; context 1×77×96; " in said
    assert "time_projection: passed; timestep 64; " in said
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["host"] == {
        "version": "11.4.0.106",
        "gpu": "Emulated GPU",
        "architecture": "sm_90",
    }
    one = results["networks"][NETWORK]
    assert one["passed"]
    assert one["agrees"] == {"keys_values": True}
    assert one["verdict"]["refused"] is None
    assert (tmp_path / f"{NETWORK}.layers.txt").read_text() == "layers"
    assert (tmp_path / f"{NETWORK}.plan").stat().st_size == one["size"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [("infinite", "keys_values is not finite"), ("unbuildable", "FAILED for context 1×77×96")],
)
def test_what_is_wrong_is_told_and_ends_with_1(
    fault: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensorrt_on_cpu.faults.add(fault)
    assert run(monkeypatch, tmp_path, "--network", NETWORK) == 1
    assert said in capsys.readouterr().out
    assert not json.loads((tmp_path / "results.json").read_text())["networks"][NETWORK]["passed"]
