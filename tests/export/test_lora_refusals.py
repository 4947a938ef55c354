"""LoRA files that cannot be merged rightly are refused, in one sentence that says why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdfast.errors import LoraError
from sdfast.export import lora
from sdfast.export.components import Checkpoint, Component
from sdfast.loras.files import SETTINGS

Tensors = dict[str, torch.Tensor]
DOTTED = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
LAYER = "lora_" + DOTTED.replace(".", "_")


@pytest.fixture(scope="module")
def sd1() -> Checkpoint:
    """One layer is enough to have a file that fits but for one thing."""
    weights = {f"{DOTTED.removeprefix('unet.')}.weight": torch.zeros(16, 16)}
    unet = Component("UNet2DConditionModel", {"layers_per_block": 2}, weights)
    return Checkpoint("tiny", "sd1", "text", "epsilon", {"unet": unet}, {}, {})


def pair(layer: str, wide: int = 16) -> Tensors:
    parts = {"lora_down.weight": torch.ones(2, wide), "lora_up.weight": torch.ones(16, 2)}
    return {f"{layer}.{part}": tensor for part, tensor in parts.items()}


def test_the_file_that_the_others_are_made_of_is_merged(sd1: Checkpoint, tmp_path: Path) -> None:
    save_file(pair(LAYER), tmp_path / "good.safetensors")
    merged, report = lora.merge(sd1, tmp_path / "good.safetensors", 0.5)
    assert report.matched == (DOTTED,)
    assert all((weight == 1).all() for weight in merged.components["unet"].weights.values())


REFUSED: dict[str, tuple[Callable[[Tensors], Mapping[str, torch.Tensor]], str]] = {
    "another width": (
        lambda t: {**t, f"{LAYER}.lora_down.weight": torch.ones(2, 768)},
        r"seems to be made for SD 1.x; tiny is SD 1.x.*16×768 there, 16×16 here",
    ),
    "FLUX": (
        lambda t: {k.replace(LAYER, "lora_unet_double_blocks_0_img"): v for k, v in t.items()},
        "seems to be made for FLUX or SD 3; tiny is SD 1.x",
    ),
    "SDXL": (
        lambda t: {**t, **pair("lora_te2_text_model_x")},
        "seems to be made for SDXL; tiny is SD 1.x",
    ),
    "nothing known": (lambda t: {"weight": torch.ones(1)}, "is made for another model"),
    "no up": (
        lambda t: {k: v for k, v in t.items() if "up" not in k},
        "lacks up of lora_unet_mid_block",
    ),
    "half of a LoHa": (
        lambda t: {f"{LAYER}.hada_w1_a": torch.ones(16, 2)},
        "lacks w1_b of lora_unet_mid_block",
    ),
    "no matrix": (
        lambda t: {**t, f"{LAYER}.lora_down.weight": torch.tensor(1.0)},
        "has no matrices for lora_unet_mid_block",
    ),
    "no rank": (
        lambda t: {**t, f"{LAYER}.lora_down.weight": torch.ones(0, 16)},
        "has no matrices for lora_unet_mid_block",
    ),
    "many alphas": (
        lambda t: {**t, f"{LAYER}.alpha": torch.ones(2)},
        "an alpha that is no number",
    ),
    "kohya's DoRA": (
        lambda t: {**t, f"{LAYER}.dora_scale": torch.ones(16, 1)},
        "DoRA in kohya's form",
    ),
    "OFT": (lambda t: {**t, f"{LAYER}.oft_blocks": torch.ones(2, 2, 2)}, "uses OFT"),
    "difference": (lambda t: {f"{LAYER}.diff": torch.ones(16, 16)}, "whole differences"),
    "unknown part": (lambda t: {**t, f"{LAYER}.gate": torch.ones(1)}, "gate, whose meaning"),
    "adapter_model": (
        lambda t: {"base_model.model.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3)},
        "PEFT's adapter_model",
    ),
    "twice": (
        lambda t: {
            **t,
            **{f"{DOTTED}.lora_{part}.weight": torch.ones(16, 16) for part in "AB"},
        },
        "one layer twice",
    ),
    "NaN": (
        lambda t: {**t, f"{LAYER}.lora_down.weight": torch.full((2, 16), torch.nan)},
        "infinite or NaN",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_rightly_is_refused(
    sd1: Checkpoint, tmp_path: Path, case: str
) -> None:
    change, message = REFUSED[case]
    save_file(dict(change(pair(LAYER))), tmp_path / "bad.safetensors")
    with pytest.raises(LoraError, match=message):
        lora.merge(sd1, tmp_path / "bad.safetensors")


def test_settings_that_tell_of_another_base_or_are_damaged_are_refused(
    sd1: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "settings.safetensors"
    beginning = json.dumps({"unet.init_lora_weights": "pissa_niter_16"})
    for written, message in (
        (beginning, "begun with 'pissa"),
        ("[1]", "damaged"),
        ("{", "damaged"),
    ):
        save_file(pair(LAYER), file, metadata={SETTINGS: written})
        with pytest.raises(LoraError, match=message):
            lora.merge(sd1, file)


def test_files_that_are_no_safetensors_are_refused(sd1: Checkpoint, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "lora.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    save_file({}, tmp_path / "empty.safetensors")
    cases = {"lora.pt": "can run any", "cut": "cannot be read", "empty": "is empty", "no": "exist"}
    for name, message in cases.items():
        file = tmp_path / (name if "." in name else f"{name}.safetensors")
        with pytest.raises(LoraError, match=message):
            lora.merge(sd1, file)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -10.5, 11])
def test_weights_beyond_ten_are_refused(sd1: Checkpoint, tmp_path: Path, weight: float) -> None:
    with pytest.raises(LoraError, match="-10 to 10"):
        lora.merge(sd1, tmp_path / "none.safetensors", weight)
