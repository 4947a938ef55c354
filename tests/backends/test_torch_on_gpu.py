"""The same programs on an NVIDIA GPU, run and captured."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import feeds
import numpy as np
import pytest

from sdfast import compiled
from sdfast.backends import Options
from sdfast.backends import torch as backend
from sdfast.devices import cuda
from sdfast.devices.cuda import Cuda
from sdfast.tensors import Tensor

from .test_engines import DEMO

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        bool(cuda.reason_unusable() or backend.reason_unusable("cuda")), reason="needs a GPU"
    ),
]
APART = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 8e-2}


@pytest.fixture(scope="module")
def gpu() -> Cuda:
    return Cuda()


def fill(gpu: Cuda, target: Tensor, array: np.ndarray) -> None:
    host = gpu.pinned(target.shape, target.dtype)
    np.asarray(host)[:] = array
    gpu.upload(target, host)
    gpu.synchronize()


def fetched(gpu: Cuda, tensors: dict[str, Tensor], names: feeds.Arrays) -> feeds.Arrays:
    found = {}
    for name in names:
        host = gpu.pinned(tensors[name].shape, tensors[name].dtype)
        gpu.download(host, tensors[name])
        gpu.synchronize()
        found[name] = np.array(host)
    return found


@pytest.mark.parametrize("stored", [False, True], ids=["kernel by kernel", "compiled"])
@pytest.mark.parametrize("precision", APART)
@pytest.mark.parametrize("name", ["unet", "vae_decoder", "text_encoder"])
def test_a_network_runs_and_is_captured(
    name: str, precision: str, stored: bool, gpu: Cuda, tmp_path: Path
) -> None:
    file, inputs = DEMO.network(name), DEMO.manifest.networks[name].inputs
    keep = partial(compiled.entry, tmp_path) if stored else None
    engine = backend.open(file, Options(precision=precision, gpu=gpu, keep=keep))
    assert engine.capturable
    first, second = feeds.feed(inputs, 0), feeds.feed(inputs, 1)
    wants = [feeds.expected(file, given) for given in (first, second)]
    like = {**first, **wants[0]}
    bound = {n: gpu.empty(a.shape, Tensor.from_dlpack(a).dtype) for n, a in like.items()}

    def enqueue() -> None:
        engine.bind(bound)
        engine.run(gpu.stream)

    def assert_near(want: feeds.Arrays) -> None:
        allowed = 16 if "image" in want else APART[precision]
        assert feeds.distance(fetched(gpu, bound, want), want) <= allowed

    for given, array in first.items():
        fill(gpu, bound[given], array)
    enqueue()
    assert_near(wants[0])
    graph = gpu.capture(enqueue)
    for given, array in second.items():
        fill(gpu, bound[given], array)
    for _ in range(2):
        graph.launch()
        assert_near(wants[1])
    engine.close()
