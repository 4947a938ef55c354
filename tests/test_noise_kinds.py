"""The laws of the kinds of noise: moments, spectrum, and what makes a Brownian path one."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest

from sdfast import _core, noise
from sdfast.errors import InvalidRequest
from sdfast.tensors import Tensor

SHAPE = (4, 4, 96, 96)
COUNT = 4 * 4 * 96 * 96
ERROR = 4 / math.sqrt(COUNT)  # of a mean of unit variance, or of a correlation: 4 standard errors


def drawn(kind: str) -> np.ndarray:
    _, draw = noise.streams(kind, "philox", [11, 12, 13, 14])
    out = Tensor.empty(SHAPE, "f32")
    draw(out, 2.0, 1.0)
    return np.array(out, dtype=np.float64)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize(
    ("kind", "variance", "kurtosis"),
    [
        ("gaussian", 1, 3),
        ("brownian", 1, 3),
        ("uniform", 1.73**2 / 3, 1.8),
        ("pyramid", 1.1904, 3),
        # A normal of variance 1/16 and Laplace's law of variance 2 and fourth moment 24.
        ("laplacian", 1, (3 / 16**2 + 6 * 2 / 16 + 24) / (2 + 1 / 16) ** 2),
    ],
)
def test_a_kind_has_its_law(kind: str, variance: float, kurtosis: float) -> None:
    values = drawn(kind)
    assert abs(values.mean()) < ERROR * math.sqrt(variance)
    # Beside a mean's error the variance's is √(κ − 1), the fourth moment's at most 14 times that.
    assert abs(values.var() / variance - 1) < ERROR * math.sqrt(kurtosis - 1)
    assert abs((values**4).mean() / values.var() ** 2 - kurtosis) < 14 * ERROR


@pytest.mark.parametrize("kind", ["laplacian", "perlin", "highres-pyramid"])
def test_standardized_kinds_have_deviation_1_in_every_image(kind: str) -> None:
    for image in drawn(kind):
        assert abs(image.std(ddof=1) - 1) < 1e-6  # float arithmetic


@pytest.mark.parametrize(
    "kind", ["gaussian", "brownian", "uniform", "pyramid", "laplacian", "highres-pyramid"]
)
def test_pixels_are_uncorrelated(kind: str) -> None:
    values = drawn(kind)
    for offset in ((0, 1), (1, 0), (1, 1), (0, 4)):
        moved = np.roll(values, offset, axis=(2, 3))
        assert abs(correlation(values, moved)) < ERROR
    # Each band of the spectrum holds its share of the power: 4 standard errors of its size.
    power = np.abs(np.fft.fft2(values)) ** 2
    low = power[..., :24, :24].mean() / power.mean()
    assert abs(low - 1) < 4 / math.sqrt(16 * 24 * 24)


def test_perlin_noise_correlates_along_its_diagonals() -> None:
    # Diagonal neighbours share one lattice point, on opposite sides: 2 · (1/16) · ½ · (−½) of the
    # variance 1/4 + 2 · 1/16. Direct ones share two, seen at right angles: 0.
    values = drawn("perlin")
    assert abs(values.mean()) < ERROR
    inner = values[..., :-1, :-1]
    assert abs(correlation(inner, values[..., 1:, 1:]) + 1 / 12) < ERROR
    assert abs(correlation(values[..., 1:, :-1], values[..., :-1, 1:]) + 1 / 12) < ERROR
    assert abs(correlation(inner, values[..., :-1, 1:])) < ERROR
    assert abs(correlation(inner, values[..., 1:, :-1])) < ERROR
    assert abs(correlation(values[:, 0], values[:, 1])) < 2 * ERROR  # a quarter of the values


def test_highres_pyramid_is_a_uniform_and_a_normal_of_uneven_variance() -> None:
    values = drawn("highres-pyramid")
    assert abs(values.mean()) < ERROR
    # Between a uniform (1.8) and a normal (3): their variances are near 1 and 1.1 to 1.7.
    assert 2.3 < (values**4).mean() < 2.95


def increments(out: Tensor, *levels: float, seed: int = 21) -> list[np.ndarray]:
    """√|a − b| n(a, b) for neighbouring levels of one stream."""
    _, draw = noise.streams("brownian", "philox", [seed] * out.shape[0])
    result = []
    for a, b in pairwise(levels):
        draw(out, a, b)
        result.append(np.array(out, dtype=np.float64) * math.sqrt(abs(a - b)))
    return result


@pytest.fixture
def out() -> Tensor:
    return Tensor.empty((1, 4, 128, 128), "f32")


N = 4 * 128 * 128


@pytest.mark.parametrize(
    ("a", "b"), [(14.6, 14.5), (14.6, 0.03), (1, 0), (2.0**16, 2.0**-16), (0.03, 0.02985), (0.5, 9)]
)
def test_brownian_draws_have_unit_variance(out: Tensor, a: float, b: float) -> None:
    (values,) = increments(out, a, b)
    # 4 standard errors, and the 0.2 % that the path's last, straight pieces may take from the
    # narrowest of these intervals, 0.5 % of σ.
    assert abs(values.var() / abs(a - b) - 1) < 4 * math.sqrt(2 / N) + 0.002
    assert abs(values.mean()) < 4 * math.sqrt(abs(a - b) / N)


def test_brownian_draws_of_disjoint_intervals_are_independent(out: Tensor) -> None:
    parts = increments(out, 14.6, 9, 3, 2.9, 0.4, 0.03, 0)
    for k, a in enumerate(parts):
        for b in parts[:k]:
            assert abs(correlation(a, b)) < 4 / math.sqrt(N)


def test_brownian_draws_of_nested_intervals_correlate_as_their_overlap(out: Tensor) -> None:
    s, c, t = 8.0, 5.0, 3.0
    _, draw = noise.streams("brownian", "philox", [1])
    draw(out, s, c)
    inner = np.array(out)
    draw(out, s, t)
    expected = math.sqrt((s - c) / (s - t))
    # The error of a correlation ρ is (1 − ρ²) / √N.
    assert abs(correlation(inner, np.array(out)) - expected) < 4 * (1 - expected**2) / math.sqrt(N)


@pytest.mark.parametrize("steps", [2, 7, 50])
def test_brownian_draws_of_a_subdivision_add_up(out: Tensor, steps: int) -> None:
    (whole,) = increments(out, 14.6, 0.03)
    parts = increments(out, *np.geomspace(14.6, 0.03, steps + 1).tolist())
    # Float sums: an ulp of the path, which reaches 20, at both ends of each of the parts.
    assert np.abs(sum(parts) - whole).max() < 4e-6 * math.sqrt(steps)


def test_brownian_paths_do_not_depend_on_the_order_of_the_draws(out: Tensor) -> None:
    _, draw = noise.streams("brownian", "philox", [3])
    levels = [(9, 5), (0.1, 0), (5, 9), (7, 5), (9, 5)]
    found = []
    for a, b in levels:
        draw(out, a, b)
        found.append(np.array(out))
    assert (found[0] == found[4]).all()
    assert (found[0] == -found[2]).all()


def test_brownian_paths_are_functions_of_seed_and_level(out: Tensor) -> None:
    whole, again, other = (Tensor.empty((1, 1, 40, 40), "f32") for _ in range(3))
    _core.brownian(whole, [5], 1.5)
    _core.brownian(again, [5], 1.5)
    _core.brownian(other, [6], 1.5)
    assert (np.array(whole) == np.array(again)).all()
    assert abs(correlation(np.array(whole), np.array(other))) < 4 / 40
    _core.brownian(whole, [5], 0.0)
    assert (np.array(whole) == 0).all()


@pytest.mark.parametrize("sigma", [-1.0, 2.0**-17, 2.0**17, math.nan, math.inf])
def test_levels_outside_the_path_are_refused(out: Tensor, sigma: float) -> None:
    _, draw = noise.streams("brownian", "philox", [0])
    with pytest.raises(InvalidRequest, match="choose other sigmas"):
        draw(out, 1.0, sigma)
    with pytest.raises(ValueError, match=r"levels 0 and 2\^-16 to 2\^16"):
        _core.brownian(out, [0], sigma)


def test_an_empty_interval_brings_no_noise(out: Tensor) -> None:
    _, draw = noise.streams("brownian", "philox", [0])
    draw(out, 1.0, 1.0)
    assert (np.array(out) == 0).all()


# Of one draw of every kind: what a change of version, compiler or processor would change.
DIGESTS = {
    "gaussian": "a5afce4ae3e74c57",
    "uniform": "dbb6b87968c0e7c4",
    "brownian": "2e05bce2db8ec9f7",
    "pyramid": "aaf02fa5815a6c54",
    "highres-pyramid": "cb2118c0770ec837",
    "perlin": "56ff5a25c8cc3bea",
    "laplacian": "d2e0b25eefba4558",
}


@pytest.mark.parametrize("kind", noise.KINDS)
def test_every_draw_has_the_bits_it_always_had(kind: str) -> None:
    start, draw = noise.streams(kind, "philox", [11, 12])
    out = Tensor.empty((2, 4, 9, 7), "f32")
    start(out)
    draw(out, 5.0, 3.0)
    assert hashlib.sha256(np.array(out).tobytes()).hexdigest()[:16] == DIGESTS[kind]
