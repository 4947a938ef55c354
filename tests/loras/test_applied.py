"""What LoRA make of a bundle's initializers, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import lora_files
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from sdfast import graph_weights, store
from sdfast.bundle import Bundle
from sdfast.errors import BundleError, LoraError
from sdfast.export.demo.models import CHECKPOINT
from sdfast.loras import Lora
from sdfast.loras.applied import NETWORKS, applied

DEMO = store.load("demo")
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def test_every_layer_of_the_file_finds_its_initializers(ink: Lora) -> None:
    made = applied(DEMO, [ink])
    (report,) = made.reports
    expected = {f"{component}.{module}" for component, module, _ in lora_files.layers(CHECKPOINT)}
    assert set(report.matched) == expected
    assert report.unmatched == ()
    changed = {name: len(made.values(name)) for name in NETWORKS if made.changes(name)}
    # Of GEGLU's weight the graph has two halves, each an initializer; unet_adapters has them too.
    assert changed["unet"] == changed["unet_adapters"] > 100
    assert changed["text_encoder"] == 12
    assert changed["context_projection"] == 14
    assert not made.changes("vae_decoder")
    assert made.values("vae_decoder") == {}


def test_initializers_keep_their_types_and_shapes(ink: Lora) -> None:
    values = applied(DEMO, [ink]).values("unet")
    for weight in graph_weights.read(DEMO.network("unet").read_bytes()):
        if weight.name in values:
            stored = weight.values(DEMO.path)
            assert values[weight.name].dtype == stored.dtype == np.float16
            assert values[weight.name].shape == stored.shape
            assert values[weight.name].flags.c_contiguous
            assert (values[weight.name] != stored).mean() > 0.9


def test_at_weight_zero_nothing_is_another(ink: Lora) -> None:
    made = applied(DEMO, [Lora(ink.file, 0)])
    stored = {w.name: w for w in graph_weights.read(DEMO.network("unet").read_bytes())}
    for name, values in made.values("unet").items():
        assert np.array_equal(values, stored[name].values(DEMO.path))


def test_what_the_bundle_has_no_layer_for_is_reported(ink: Lora, tmp_path: Path) -> None:
    tensors = load_file(ink.file)
    more = {f"lora_unet_new.lora_{part}.weight": np.ones((2, 2), np.float32) for part in "ud"}
    file = tmp_path / "more.safetensors"
    save_file(
        {
            **tensors,
            **{k.replace("_d.", "_down.").replace("_u.", "_up."): v for k, v in more.items()},
        },
        file,
    )
    (report,) = applied(DEMO, [Lora(file)]).reports
    assert report.unmatched == ("lora_unet_new",)


def pair(file: Path, inputs: int = 64, size: float = 1.0) -> Lora:
    """For one layer of the demo's U-Net, [64, 64]."""
    down, up = np.full((2, inputs), size, np.float32), np.full((64, 2), size, np.float32)
    save_file({f"{LAYER}.lora_down.weight": down, f"{LAYER}.lora_up.weight": up}, file)
    return Lora(file)


def test_a_layer_of_another_shape_is_refused(tmp_path: Path) -> None:
    made = applied(DEMO, [pair(tmp_path / "wide.safetensors", 320)])
    with pytest.raises(
        LoraError, match=r"made for another model; bundle demo is SD 1\.x.*64×320 there, 64×64 here"
    ):
        made.values("unet")


def test_values_without_end_are_refused(tmp_path: Path) -> None:
    made = applied(DEMO, [pair(tmp_path / "loud.safetensors", size=300.0)])
    with pytest.raises(
        LoraError, match=r"loud.safetensors × 1 make mid_block.*float16: give smaller"
    ):
        made.values("unet")


def test_a_lora_of_another_family_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    name = "lora_unet_double_blocks_0_img"
    ones = np.ones((2, 2), np.float32)
    save_file({f"{name}.lora_down.weight": ones, f"{name}.lora_up.weight": ones}, file)
    with pytest.raises(LoraError, match=r"made for FLUX or SD 3; bundle demo is SD 1\.x"):
        applied(DEMO, [Lora(file)])


def test_integers_are_refused(ink: Lora) -> None:
    networks = DEMO.manifest.networks
    int8 = {**networks, "unet": replace(networks["unet"], precision="int8")}
    bundle = Bundle(DEMO.path, replace(DEMO.manifest, networks=int8))
    with pytest.raises(LoraError, match="unet of bundle demo is int8, to which a LoRA cannot be"):
        applied(bundle, [ink])


def test_a_graph_that_does_not_tell_its_weights_is_refused(ink: Lora, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO.path, tmp_path / "older"))
    bundle = Bundle(folder, DEMO.manifest)
    model = onnx.load(folder / "unet.onnx", load_external_data=False)
    weight = next(i for i in model.graph.initializer if len(i.dims) > 1)
    for name, told, error in (
        (weight.name, "[]", "cannot be read"),
        (weight.name, json.dumps({"rows": [["x", 0, 1]], "turned": False}), "cannot be read"),
        (weight.name, json.dumps({"rows": [["x", 0]], "turned": False}), "cannot be read"),
        ("plain", "", "does not tell what its weights are"),
    ):
        weight.name, weight.doc_string = name, told
        (folder / "unet.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(BundleError, match=error):
            applied(bundle, [ink])
