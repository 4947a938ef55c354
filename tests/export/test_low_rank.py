"""Each method's ΔW against PEFT's, and against the layers that it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from torch.nn import functional as F

from sdfast.export import low_rank


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 16, 1))


@pytest.mark.parametrize(
    "settings",
    [
        LoHaConfig(r=2, alpha=3, init_weights=False),
        LoHaConfig(r=2, alpha=3, init_weights=False, use_effective_conv2d=True),
        LoKrConfig(r=1, alpha=3, init_weights=False, decompose_both=True),
        LoKrConfig(r=1, alpha=3, init_weights=False, use_effective_conv2d=True),
        # Of whole factors LyCORIS, whose form this is, leaves alpha out.
        LoKrConfig(r=9, alpha=9, init_weights=False),
    ],
    ids=["loha", "loha-tucker", "lokr", "lokr-tucker", "lokr-whole"],
)
def test_lohas_and_lokrs_are_what_peft_merges(settings: LoHaConfig | LoKrConfig) -> None:
    before = network()
    settings = copy.deepcopy(settings)
    settings.target_modules = ["0", "1", "2"]
    adapted = get_peft_model(copy.deepcopy(before), settings)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in get_peft_model_state_dict(adapted).items():
        layer, _, ending = key.removeprefix("base_model.model.").rpartition(".")
        layers.setdefault(layer, {})[low_rank.PARTS[ending]] = tensor
    theirs = adapted.merge_and_unload().state_dict()
    assert len(layers) == 3
    for layer, parts in layers.items():
        assert low_rank.missing(parts) is None
        weight = before.state_dict()[f"{layer}.weight"]
        difference = low_rank.difference(parts).reshape(weight.shape)
        ours = weight + low_rank.scale(parts, settings.alpha, root=False) * difference
        torch.testing.assert_close(ours, theirs[f"{layer}.weight"])


def test_a_tucker_convolution_is_its_three_convolutions_in_turn() -> None:
    torch.manual_seed(1)
    down, mid, up = torch.randn(3, 16, 1, 1), torch.randn(4, 3, 3, 3), torch.randn(8, 4, 1, 1)
    weight = low_rank.difference({"down": down, "mid": mid, "up": up})
    x = torch.randn(1, 16, 5, 5)
    expected = F.conv2d(F.conv2d(F.conv2d(x, down), mid), up)
    # Sums of some hundred products in float32.
    torch.testing.assert_close(F.conv2d(x, weight), expected, rtol=1e-4, atol=1e-4)


def test_a_dora_gives_each_output_its_length() -> None:
    torch.manual_seed(2)
    lengths = torch.rand(6) + 0.5
    for shape in ((6, 4), (6, 4, 3, 3)):
        weight = torch.randn(shape)
        merged = low_rank.decomposed(weight, lengths.reshape(1, 6, *(1 for _ in shape[2:])))
        torch.testing.assert_close(merged.flatten(1).norm(dim=1), lengths)
        cosines = F.cosine_similarity(merged.flatten(1), weight.flatten(1))
        torch.testing.assert_close(cosines, torch.ones(6))


def test_what_is_missing_is_named() -> None:
    one = torch.ones(2, 2)
    assert low_rank.missing({"down": one, "up": one, "alpha": one, "magnitude": one}) is None
    assert low_rank.missing({"down": one}) == "up"
    assert low_rank.missing({"kron_w1": one, "kron_w2_b": one}) == "kron_w2_a"
    assert low_rank.missing({"alpha": one}) == "down"
