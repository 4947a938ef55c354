"""The demo bundle's engines of the TensorRT backend, and what their outputs ought to be."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from backends.tensorrt_on_cpu import Gpu

from sdfast import backends, compiled, store
from sdfast.backends import Engine, Options, acceptance, tensorrt
from sdfast.backends.tensorrt import TensorRtEngine
from sdfast.devices.cuda import Keep
from sdfast.tensors import Tensor

DEMO = store.load("demo")


def keep_of(network: str) -> Keep:
    """As the pipeline makes it."""
    listed = DEMO.manifest.networks[network]
    made_of = {name: DEMO.manifest.files[name] for name in (listed.file, *listed.weights)}
    return lambda key, build: compiled.entry(store.home(), {**made_of, **key}, build)


def opened(
    network: str, gpu: Gpu | None = None, replaced: dict[str, np.ndarray] | None = None
) -> TensorRtEngine:
    options = Options(precision="fp32", keep=keep_of(network), gpu=gpu or Gpu())  # type: ignore[arg-type]
    if replaced is not None:
        options = replace(options, replaced=lambda: replaced)
    return tensorrt.open(DEMO.network(network), options)


def tensors(network: str, rows: int, side: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs, and outputs of zeros."""
    listed = DEMO.manifest.networks[network]
    sides = {"latent": side, "noise": side, "features": side, "image": 8 * side}

    def shape(name: str, spec: tuple[int | None, ...]) -> tuple[int, ...]:
        varying = iter((rows, *(sides[name],) * 2) if name in sides else (rows, 77))
        return tuple(next(varying) if s is None else s for s in spec)

    inputs = {n: (s.dtype, shape(n, s.shape)) for n, s in listed.inputs.items()}
    made = acceptance.examples(inputs, 100, seed)
    return made | {n: Tensor.zeros(shape(n, s.shape), s.dtype) for n, s in listed.outputs.items()}


@cache
def portable(network: str) -> Engine:
    return backends.open_engine(DEMO.network(network), "onnxruntime")


def expected(network: str, bound: dict[str, Tensor], output: str) -> np.ndarray:
    engine = portable(network)
    copies = {name: Tensor.from_dlpack(np.array(tensor)) for name, tensor in bound.items()}
    engine.bind(copies)
    engine.run()
    return np.array(copies[output])
