"""bfloat16 and float16 against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdfast.floats import BFLOAT16, rounded, widened


def test_bfloat16_is_pytorchs_bit_by_bit() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    theirs = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    assert np.array_equal(widened(bits), theirs, equal_nan=True)
    random = np.random.default_rng(0)
    ties = widened(bits[np.isfinite(theirs)]).view(np.uint32) | 0x8000  # halfway to the next
    values = np.concatenate([random.standard_normal(10_000, np.float32), ties.view(np.float32)])
    values = values[np.abs(values) < 3e38]
    ours = rounded(values, BFLOAT16)
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    assert np.array_equal(ours, expected)


def test_what_a_type_cannot_hold_is_refused() -> None:
    for dtype, largest, name in (
        (np.dtype(np.float16), 65504.0, "float16"),
        (BFLOAT16, 3.3895314e38, "bfloat16"),
        (np.dtype(np.float32), 3.4e38, "float32"),
    ):
        whole = np.array([largest], np.float32)
        assert widened(rounded(whole, dtype))[0] == np.float32(largest)
        for wrong in (np.inf, np.nan, -np.inf):
            with pytest.raises(OverflowError, match=f"infinite or NaN in {name}"):
                rounded(np.array([0, wrong], np.float32), dtype)
    with pytest.raises(OverflowError, match="float16"):
        rounded(np.array([65520.0], np.float32), np.dtype(np.float16))
    with pytest.raises(OverflowError, match="bfloat16"):
        rounded(np.array([3.4e38], np.float32), BFLOAT16)
