"""Other weights in engines of the TensorRT backend, with ONNX Runtime in TensorRT's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lora_files
import numpy as np
import onnx
import pytest
from backends import tensorrt_on_cpu
from backends.demo_engines import DEMO, expected, keep_of, opened, tensors
from backends.tensorrt_on_cpu import Gpu

from sdfast import backends, store
from sdfast.backends import Options, tensorrt
from sdfast.backends.tensorrt_plans import Form
from sdfast.errors import EngineError
from sdfast.export.demo.models import CHECKPOINT
from sdfast.export.engines import build_engines
from sdfast.loras import Lora
from sdfast.loras.applied import applied

pytestmark = pytest.mark.usefixtures("emulated", "own_store")


def test_a_stripped_engine_takes_the_weights_of_the_bundle() -> None:
    list(build_engines(DEMO, networks=["context_projection"], form=Form(stripped=True)))
    bound = tensors("context_projection", 1, 16)
    engine = opened("context_projection")
    engine.bind(bound)
    engine.run()
    found = expected("context_projection", bound, "keys_values")
    assert np.allclose(np.asarray(bound["keys_values"]), found, atol=1e-4)


def test_weights_can_be_replaced_by_name_where_an_engine_was_built_for_it() -> None:
    graph = onnx.load(DEMO.network("context_projection")).graph
    kinds = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
    zeros = {
        i.name: np.zeros(tuple(i.dims), kinds[i.data_type])
        for i in graph.initializer
        if len(i.dims) == 2
    }
    name = next(iter(zeros))
    bound = tensors("context_projection", 1, 16)
    list(build_engines(DEMO, networks=["context_projection"]))
    with pytest.raises(EngineError, match="keeps its weights: build it anew with --refittable"):
        opened("context_projection", replaced=zeros).bind(bound)
    for entry in (store.home() / "engines").iterdir():
        if (entry / "network.plan").is_file():
            (entry / "network.plan").unlink()
    list(build_engines(DEMO, networks=["context_projection"], form=Form(refittable=True)))
    engine = opened("context_projection")
    with pytest.warns(match="is damaged"):
        engine.bind(bound)
    engine.run()
    assert np.abs(np.asarray(bound["keys_values"])).max() > 0
    engine.close()
    damaged = pytest.warns(match="is damaged")
    unknown = pytest.raises(EngineError, match=f"has no weights '{name}s'; did you mean '{name}'")
    with damaged, unknown:
        opened("context_projection", replaced={f"{name}s": zeros[name]}).bind(bound)
    engine = opened("context_projection", replaced=zeros)
    with pytest.warns(match="is damaged"):
        engine.bind(bound)
    engine.run()
    assert np.abs(np.asarray(bound["keys_values"])).max() == 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_lora_is_put_in_by_refit(fused: bool, tmp_path: Path) -> None:
    ink = Lora(lora_files.write(tmp_path / "ink.safetensors", CHECKPOINT, 1), 0.8)
    made = applied(DEMO, [ink])
    list(build_engines(DEMO, networks=["context_projection"], form=Form(refittable=True)))
    if fused:
        tensorrt_on_cpu.faults.add("fused")
    file, options = DEMO.network("context_projection"), Options(precision="fp32")
    options = replace(options, replaced=lambda: made.values("context_projection"))
    bound = tensors("context_projection", 1, 16)
    plain = expected("context_projection", bound, "keys_values")
    there = replace(options, keep=keep_of("context_projection"), gpu=Gpu())  # type: ignore[arg-type]
    found = []
    for engine in (tensorrt.open(file, there), backends.open_engine(file, "onnxruntime", options)):
        engine.bind(bound)
        engine.run()
        found.append(np.array(bound["keys_values"]))
        engine.close()
    assert np.array_equal(*found)
    assert np.abs(found[0] - plain).max() > 0.1
