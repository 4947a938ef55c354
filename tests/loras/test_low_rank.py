"""Each method's ΔW against PEFT's, and against the layers that it stands for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from torch.nn import functional as F

from sdfast.loras import low_rank


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
        arrays = {name: part.numpy() for name, part in parts.items()}
        difference = torch.from_numpy(low_rank.difference(arrays, tuple(weight.shape)))
        ours = weight + low_rank.scale(arrays, settings.alpha, root=False) * difference
        torch.testing.assert_close(ours, theirs[f"{layer}.weight"])


def test_a_tucker_convolution_is_its_three_convolutions_in_turn() -> None:
    torch.manual_seed(1)
    down, mid, up = torch.randn(3, 16, 1, 1), torch.randn(4, 3, 3, 3), torch.randn(8, 4, 1, 1)
    parts = {"down": down.numpy(), "mid": mid.numpy(), "up": up.numpy()}
    weight = torch.from_numpy(low_rank.difference(parts, (8, 16, 3, 3)))
    x = torch.randn(1, 16, 5, 5)
    expected = F.conv2d(F.conv2d(F.conv2d(x, down), mid), up)
    # Sums of some hundred products in float32.
    torch.testing.assert_close(F.conv2d(x, weight), expected, rtol=1e-4, atol=1e-4)


def test_a_dora_gives_each_output_its_length() -> None:
    random = np.random.default_rng(2)
    lengths = random.random(6, np.float32) + np.float32(0.5)
    for shape in ((6, 4), (6, 4, 3, 3)):
        weight, change = (random.standard_normal(shape, np.float32) for _ in range(2))
        merged = low_rank.merged(weight, change, lengths).reshape(6, -1)
        np.testing.assert_allclose(np.linalg.norm(merged, axis=1), lengths, rtol=1e-6)
        plain = low_rank.merged(weight, change).reshape(6, -1)
        cosines = (merged * plain).sum(1) / np.linalg.norm(plain, axis=1) / lengths
        np.testing.assert_allclose(cosines, 1, rtol=1e-6)


def test_rows_are_computed_by_themselves() -> None:
    random = np.random.default_rng(3)
    weight, change = (random.standard_normal((8, 5, 3, 3), np.float32) for _ in range(2))
    lengths = random.random(8, np.float32)
    whole = low_rank.merged(weight, change, lengths)
    half = low_rank.merged(weight[4:], change[4:], lengths[4:])
    assert np.array_equal(half, whole[4:])


def test_a_matrix_of_another_shape_is_refused_by_its_shape() -> None:
    parts = {"down": np.ones((2, 16), np.float32), "up": np.ones((8, 2), np.float32)}
    assert low_rank.difference(parts, (8, 16, 1, 1)).shape == (8, 16, 1, 1)
    for shape in ((8, 8), (16, 8), (8, 16, 3, 3)):
        with pytest.raises(ValueError, match="8×16 there, " + "×".join(map(str, shape))):
            low_rank.difference(parts, shape)


def test_what_is_missing_is_named() -> None:
    one = np.ones((2, 2))
    assert low_rank.missing({"down": one, "up": one, "alpha": one, "magnitude": one}) is None
    assert low_rank.missing({"down": one}) == "up"
    assert low_rank.missing({"kron_w1": one, "kron_w2_b": one}) == "kron_w2_a"
    assert low_rank.missing({"alpha": one}) == "down"
