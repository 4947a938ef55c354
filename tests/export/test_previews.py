"""The map that previews are drawn by: what is fitted, and that every bundle that decodes has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdfast import backends
from sdfast import previews as runtime
from sdfast.export import export, previews
from sdfast.export.sources import read
from sdfast.opened import Opened
from sdfast.store import load
from sdfast.tensors import Tensor

from .conftest import BundleOf, CheckpointOf


def test_a_linear_relation_is_found_exactly() -> None:
    random = np.random.default_rng(0)
    weights, bias = random.standard_normal((3, 4)) * 50, random.standard_normal(3) * 100
    latents = random.standard_normal((2, 4, 5, 6))
    colours = np.einsum("kc,bchw->bhwk", weights, latents) + bias
    found, offset = previews.fit(latents, colours)
    np.testing.assert_allclose(found, weights, rtol=1e-5)  # six digits are written
    np.testing.assert_allclose(offset, bias, rtol=1e-5)


def test_latents_that_are_not_finite_are_refused() -> None:
    latents = np.full((1, 4, 2, 2), np.nan)
    with pytest.raises(ValueError, match="not finite"):
        previews.fit(latents, np.zeros((1, 2, 2, 3)))


def test_every_family_has_a_map_and_a_controlnet_none(bundle_of: BundleOf) -> None:
    for family in ("sd15", "sdxl", "sdxl-refiner"):
        found = bundle_of(family)
        assert found.manifest.preview is not None
        assert found.manifest.preview.scale is None
        assert np.abs(found.manifest.preview.weights).max() > 0
    assert bundle_of("sd15-controlnet").manifest.preview is None


def test_the_demo_bundle_has_the_map_that_is_fitted_now() -> None:
    folder = Path(__file__).parents[2] / "export" / "demo" / "checkpoint"
    found, kept = previews.preview(read(folder)), load("demo").manifest.preview
    assert kept is not None
    # Convolutions of another CPU or torch differ in the last bits.
    np.testing.assert_allclose(found.weights, kept.weights, atol=0.01)
    np.testing.assert_allclose(found.bias, kept.bias, atol=0.01)


def test_a_preview_decoder_draws_the_previews_of_its_bundle(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    made = export(checkpoint_of("sd15"), tmp_path / "made", preview=checkpoint_of("taesd"))
    assert made.manifest.preview is not None
    assert made.manifest.preview.scale == 8
    values = np.random.default_rng(0).standard_normal((2, 4, 3, 5)).astype(np.float32)
    opened = Opened(made, "onnxruntime", backends.Options())
    got = runtime.previewer(opened)(Tensor.from_dlpack(values))
    assert [picture.size for picture in got] == [(40, 24)] * 2
    assert [np.asarray(p).tolist() for p in got] != [np.asarray(got[0]).tolist()] * 2
    alone = runtime.previewer(opened)(Tensor.from_dlpack(values[1:].copy()))
    assert np.abs(np.subtract(alone[0], got[1], dtype=float)).max() <= 1
