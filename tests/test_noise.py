from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sdfast import _core, noise
from sdfast.errors import InvalidRequest
from sdfast.tensors import Tensor

# torch.randn(3, 4, device="cuda") after torch.manual_seed(0). The second value is printed as
# -0.42544415 in some documents: a digit slipped; PyTorch prints -0.4253.
CUDA_SEED_0 = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]
STREAMS = [("gaussian", "torch"), *((kind, "philox") for kind in noise.KINDS)]


def drawn(rng: str, seeds: list[int], draws: int, *shape: int) -> list[np.ndarray]:
    """The start and the gaussian draws after it."""
    return run("gaussian", rng, seeds, draws, *shape)


def run(kind: str, rng: str, seeds: list[int], draws: int, *shape: int) -> list[np.ndarray]:
    """The start, then draws for neighbouring intervals of σ."""
    start, draw = noise.streams(kind, rng, seeds)
    out = Tensor.empty((len(seeds), *shape), "f32")
    start(out)
    result = [np.array(out)]
    for k in range(1, draws):
        draw(out, 15.0 - k, 14.0 - k)
        result.append(np.array(out))
    return result


def philox_words(counter: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """Philox4x32-10 as the paper writes it (Salmon et al., SC 2011)."""
    c, k = counter, (seed & 0xFFFFFFFF, seed >> 32)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = (
            (p1 >> 32) ^ c[1] ^ k[0],
            p1 & 0xFFFFFFFF,
            (p0 >> 32) ^ c[3] ^ k[1],
            p0 & 0xFFFFFFFF,
        )
        k = ((k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF)
    return c


def test_philox_gives_the_values_of_torch_on_cuda() -> None:
    (values,) = drawn("philox", [0], 1, 3, 4)
    assert np.abs(values[0] - CUDA_SEED_0).max() < 2e-7


@pytest.mark.parametrize(("seed", "draw"), [(0, 0), (1, 7), (2**63 + 12345, 2**32 - 1)])
def test_philox_is_the_formula_in_double_precision(seed: int, draw: int) -> None:
    out = Tensor.empty((1, 5, 1001), "f32")  # ends within a tile
    _core.philox_normals(out, [seed], draw)
    words = [philox_words((draw, 0, k, 0), seed) for k in range(5005)]
    w = np.array(words, dtype=np.float64) + 0.5
    expected = np.sqrt(-2 * np.log(w[:, 0] / 2**32)) * np.sin(w[:, 1] * (2 * math.pi / 2**32))
    # Three roundings to float and two polynomials of 1e-7: 2e-7 both absolute and relative.
    assert np.allclose(np.array(out).ravel(), expected, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 5, 5), (4, 3, 7), (1, 4, 4)])
@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63])
def test_torch_gives_the_values_of_torch_on_a_cpu(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for values in drawn("torch", [seed], 3, *shape):
        expected = torch.randn(1, *shape, generator=generator).numpy()
        # Torch's vector logarithm and cosine round in other places: 2 ulp of the largest normals.
        assert np.abs(values - expected).max() <= 1e-6


def test_torch_agrees_over_a_million_values() -> None:
    (values,) = drawn("torch", [5], 1, 4, 512, 512)
    expected = torch.randn(1, 4, 512, 512, generator=torch.Generator().manual_seed(5)).numpy()
    assert np.abs(values - expected).max() <= 1e-6  # as above


@pytest.mark.parametrize(("kind", "rng"), STREAMS)
def test_an_image_gets_its_noise_in_any_batch_place(kind: str, rng: str) -> None:
    together = run(kind, rng, [7, 8, 9], 3, 4, 9, 7)
    for place, seed in enumerate([7, 8, 9]):
        alone = run(kind, rng, [seed], 3, 4, 9, 7)
        for a, b in zip(together, alone, strict=True):
            assert (a[place] == b[0]).all()


@pytest.mark.parametrize(("kind", "rng"), STREAMS)
def test_draws_of_a_run_and_of_another_seed_are_independent(kind: str, rng: str) -> None:
    found = [v.ravel() for seed in (3, 4) for v in run(kind, rng, [seed], 3, 4, 64, 64)]
    for a, b in itertools.combinations(found, 2):
        # 16,384 values: 4 standard errors, of 15 pairs.
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / 128


@pytest.mark.parametrize("rng", noise.RNGS)
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


@pytest.mark.parametrize(("kind", "rng"), itertools.product(noise.KINDS, noise.RNGS))
def test_every_run_starts_from_draw_0_of_its_rng(kind: str, rng: str) -> None:
    assert (run(kind, rng, [5], 1, 4, 8, 8)[0] == drawn(rng, [5], 1, 4, 8, 8)[0]).all()


@pytest.mark.parametrize("kind", [kind for kind in noise.KINDS if kind != "gaussian"])
def test_the_other_kinds_are_the_same_under_either_rng(kind: str) -> None:
    philox, mersenne = (run(kind, rng, [5], 3, 4, 8, 8)[1:] for rng in noise.RNGS)
    assert np.array_equal(philox, mersenne)


def test_unknown_kinds_and_generators_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'pink'; it must be one of gaussian, uniform"):
        noise.streams("pink", "philox", [0])
    with pytest.raises(InvalidRequest, match="'mt'; it must be one of philox, torch"):
        noise.streams("gaussian", "mt", [0])
