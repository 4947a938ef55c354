from __future__ import annotations

import numpy as np
import pytest
import torch

from sdfast import noise
from sdfast.tensors import Tensor

# torch.randn(3, 4, device="cuda") after torch.manual_seed(0). The second value is printed as
# -0.42544415 in some documents: a digit slipped; PyTorch prints -0.4253.
CUDA_SEED_0 = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]


def drawn(rng: str, seeds: list[int], draws: int, *shape: int) -> list[np.ndarray]:
    draw = noise.STREAMS[rng](seeds)
    out = Tensor.empty((len(seeds), *shape), "f32")
    result = []
    for _ in range(draws):
        draw(out)
        result.append(np.array(out))
    return result


def test_philox_gives_the_values_of_torch_on_cuda() -> None:
    (values,) = drawn("philox", [0], 1, 3, 4)
    assert np.abs(values[0] - CUDA_SEED_0).max() < 2e-7


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 5, 5), (4, 3, 7), (1, 4, 4)])
@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63])
def test_torch_gives_the_values_of_torch_on_a_cpu(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for values in drawn("torch", [seed], 3, *shape):
        expected = torch.randn(1, *shape, generator=generator).numpy()
        # Torch's vector logarithm and cosine round in other places: 2 ulp of the largest normals.
        assert np.abs(values - expected).max() <= 1e-6


@pytest.mark.parametrize("rng", noise.STREAMS)
def test_an_image_gets_its_noise_in_any_batch_place(rng: str) -> None:
    together = drawn(rng, [7, 8, 9], 3, 4, 8, 8)
    for place, seed in enumerate([7, 8, 9]):
        alone = drawn(rng, [seed], 3, 4, 8, 8)
        for a, b in zip(together, alone, strict=True):
            assert (a[place] == b[0]).all()


@pytest.mark.parametrize("rng", noise.STREAMS)
def test_draws_are_unit_normal_and_differ(rng: str) -> None:
    first, second = drawn(rng, [3], 2, 4, 64, 64)
    for values in (first, second):
        # 16,384 values: three standard errors of mean and deviation.
        assert abs(values.mean()) < 3 / 128
        assert abs(values.std() - 1) < 3 / 181
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 3 / 128


def test_seeds_use_all_64_bits_in_philox() -> None:
    (low,), (high,) = drawn("philox", [1], 1, 4, 8, 8), drawn("philox", [1 + 2**40], 1, 4, 8, 8)
    assert not np.allclose(low, high)
