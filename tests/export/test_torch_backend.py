"""PyTorch runs what is exported: every family, every form that graphs and weights have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import feeds
import pytest
import torch

from sdfast.backends import Options, torch_lowering, torch_network
from sdfast.bundle import Bundle
from sdfast.export import export, recipes
from sdfast.export.networks import PLAIN

from .conftest import BundleOf, CheckpointOf
from .test_quantization import LAYOUTS, X, written

EXACT = Options(precision="fp32", threads=1)


def assert_same(found: Bundle, relative: float = 1e-4, levels: float = 1.0) -> None:
    """Every network computes what ONNX Runtime does."""
    for name, network in found.manifest.networks.items():
        file = found.network(name)
        given = feeds.feed(network.inputs)
        want = feeds.expected(file, given)
        got = feeds.computed(file, given, want, "torch", EXACT)
        allowed = levels if "image" in want else relative
        assert feeds.distance(got, want) <= allowed, name


@pytest.mark.parametrize(
    "family",
    [
        *("sd21", "sdxl", "sdxl-refiner", "lcm", "sd15-inpaint"),
        *("sd15-controlnet", "sdxl-controlnet", "sd15-t2i-adapter", "sdxl-t2i-adapter"),
    ],
)
def test_every_family(family: str, bundle_of: BundleOf) -> None:
    assert_same(bundle_of(family))


def test_graphs_of_plain_operators_over_the_checkpoint_as_it_is(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    recipe = recipes.load("sdxl")
    networks = tuple(n for n in recipe.networks if n not in recipes.HOISTED)
    recipe = replace(recipe, networks=networks, options=PLAIN, layout="checkpoint")
    made = export(
        checkpoint_of("sdxl"), tmp_path / "plain", recipe=recipe, preview=checkpoint_of("taesdxl")
    )
    assert "Transpose" in made.manifest.networks["text_encoder"].graph.operators
    assert_same(made)


def test_graphs_of_half_precision_keep_their_types_and_are_widened_for_float32(
    checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    made = export(checkpoint_of("sd15"), tmp_path / "half", precision="bf16")
    for name, network in made.manifest.networks.items():
        file, given = made.network(name), feeds.feed(network.inputs)
        kinds = {value.dtype for value in weights_in(file, "fp16").values()}
        assert torch.bfloat16 in kinds
        assert torch.float16 not in kinds
        want = feeds.expected(bundle_of("sd15").network(name), given)
        widened = feeds.computed(file, given, want, "torch", EXACT)
        exact = feeds.distance(widened, want)
        rounded = feeds.distance(feeds.in_precision(file, "fp16", given), want)
        # Widened, it is their weights alone that were rounded.
        low, high = (1, 8) if "image" in want else (1e-4, 2e-2)
        assert low <= exact <= rounded <= high, name


def weights_in(file: Path, precision: str) -> dict[str, torch.Tensor]:
    return torch_network.read(torch_lowering.lowered(file, precision), "cpu")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_bits(layout: str, tmp_path: Path) -> None:
    written(tmp_path, layout)
    file = tmp_path / "chain.onnx"
    want = feeds.expected(file, {"x": X})
    got = feeds.computed(file, {"x": X}, want, "torch", EXACT)
    # Here and there a sum in another order is rounded to the next step; without any rounding the
    # mean would be 30 times that.
    assert feeds.distance(got, want) < 5e-3
    assert abs(got["y"] - want["y"]).mean() < 1e-4 * abs(want["y"]).max()
