"""Rows beside others: what the service's promise of equal bits rests on, for other networks than
the demo's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sdfast.backends import Options
from sdfast.devices.together import Together, count, is_by_row, part
from sdfast.opened import Opened
from sdfast.plans.host import tensors
from sdfast.tensors import Tensor

from .conftest import BundleOf


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_a_row_has_the_same_bits_in_any_company(
    family: str, backend: str, bundle_of: BundleOf
) -> None:
    opened = Opened(bundle_of(family), backend, Options(2, "fp32", throughput=True))
    random, together = np.random.default_rng(0), Together()
    for network in ("unet", "time_projection", "vae_decoder"):
        engine = opened[network]
        assert is_by_row(engine)
        if network == "vae_decoder":
            scale = opened.bundle.sizes.scale
            every = {
                "latent": Tensor.empty((6, 4, 8, 16), "f32"),
                "image": Tensor.empty((6, 8 * scale, 16 * scale, 3), "u8"),
            }
        else:
            every = tensors(opened, network, rows=6, tokens=77, sides=(8, 16))
        for name in engine.inputs:
            array = np.asarray(every[name])
            array[:] = random.standard_normal(array.shape)
        call = engine, every
        assert count(call) == 6
        for k in range(6):
            together.make([part(call, k, k + 1)], alone=True)
        alone = [np.array(every[name]) for name in engine.outputs]
        for cut in ((0, 6), (0, 4, 6), (0, 1, 3, 6)):
            for name in engine.outputs:
                np.asarray(every[name])[:] = 0
            for start, end in pairwise(cut):
                together.make([part(call, start, end)], alone=False)
            for name, expected in zip(engine.outputs, alone, strict=True):
                assert (np.asarray(every[name]) == expected).all(), (network, cut)
        halves = [part(call, 4, 6), part(call, 0, 4)]  # put side by side in another order
        together.make(halves, alone=False)
        for name, expected in zip(engine.outputs, alone, strict=True):
            assert (np.asarray(every[name]) == expected).all()
