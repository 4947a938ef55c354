"""The native passes against NumPy in float64: float32 sums of a few terms agree to 1e-6 of the
largest term."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sdfast import _core
from sdfast.tensors import Tensor

sides = st.integers(1, 37)
seeds = st.integers(0, 2**32 - 1)
sigmas = st.floats(0.0, 100.0)


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


Wide = NDArray[np.float64]


def close(got: NDArray[np.float32], expected: NDArray[np.float64], scale: float) -> bool:
    return bool(np.abs(got - expected).max() <= 1e-6 * max(scale, 1.0))


@given(st.integers(1, 3), sides, sides, st.integers(1, 2), sigmas, st.floats(0, 999), seeds)
def test_prepare_scales_and_repeats(
    batch: int, h: int, w: int, rows: int, sigma: float, t: float, seed: int
) -> None:
    x = normal(seed, batch, 4, h, w)
    latent = np.full((rows * batch, 4, h, w), np.nan, np.float32)
    timestep = np.full(rows * batch, np.nan, np.float32)
    _core.prepare(*map(Tensor.from_dlpack, (latent, timestep, x)), sigma, t)
    expected = np.concatenate([x.astype(np.float64)] * rows) / np.sqrt(sigma**2 + 1)
    assert close(latent, expected, float(np.abs(x).max()))
    assert (timestep == np.float32(t)).all()


PREDICTIONS = {
    "epsilon": lambda x, out, s: x - s * out,
    "v_prediction": lambda x, out, s: x / (s**2 + 1) - out * s / np.sqrt(s**2 + 1),
    "sample": lambda x, out, s: out,
}


@given(
    st.integers(1, 3),
    sides,
    sides,
    sigmas,
    st.floats(0, 20),
    st.sampled_from([*PREDICTIONS]),
    seeds,
)
def test_guide_mixes_and_denoises(
    batch: int, h: int, w: int, sigma: float, guidance: float, prediction: str, seed: int
) -> None:
    x, out = normal(seed, batch, 4, h, w), normal(seed + 1, 2 * batch, 4, h, w)
    denoised = np.full_like(x, np.nan)
    tensors = [Tensor.from_dlpack(a) for a in (denoised, out, x)]
    _core.guide(*tensors, sigma, guidance, prediction)
    unguided, guided = np.split(out.astype(np.float64), 2)
    mixed = unguided + guidance * (guided - unguided)
    expected = PREDICTIONS[prediction](x.astype(np.float64), mixed, sigma)
    assert close(denoised, expected, 10 * (1 + sigma) * (1 + 2 * guidance))


def v_from(x: Wide, denoised: Wide, sigma: float) -> Wide:
    return (x / (sigma**2 + 1) - denoised) * np.sqrt(sigma**2 + 1) / sigma


def rescaled(x: Wide, guided: Wide, mixed: Wide, sigma: float, phi: float) -> tuple[Wide, float]:
    """D of v rescaled as arXiv:2305.08891 has it, and the largest factor on the way."""
    v_guided, v = v_from(x, guided, sigma), v_from(x, mixed, sigma)
    deviations = [a.std(axis=(1, 2, 3), ddof=1, keepdims=True) for a in (v_guided, v)]
    factor = deviations[0] / deviations[1]
    v = phi * v * factor + (1 - phi) * v
    return x / (sigma**2 + 1) - v * sigma / np.sqrt(sigma**2 + 1), float(factor.max())


@given(
    st.integers(1, 3),
    sides,
    sides,
    st.floats(1e-3, 100.0),  # v has no value at 0
    st.floats(0, 20),
    st.floats(0, 1),
    st.sampled_from([*PREDICTIONS]),
    seeds,
)
def test_rescale_gives_v_the_deviation_that_it_has_under_the_prompt(
    batch: int,
    h: int,
    w: int,
    sigma: float,
    guidance: float,
    phi: float,
    prediction: str,
    seed: int,
) -> None:
    x, out = normal(seed, batch, 4, h, w), normal(seed + 1, 2 * batch, 4, h, w)
    denoised = np.full_like(x, np.nan)
    tensors = [Tensor.from_dlpack(a) for a in (denoised, out, x)]
    _core.guide(*tensors, sigma, guidance, prediction, phi)
    wide = x.astype(np.float64)
    unguided, guided = (
        PREDICTIONS[prediction](wide, o, sigma) for o in np.split(out.astype(np.float64), 2)
    )
    mixed = unguided + guidance * (guided - unguided)
    expected, factor = rescaled(wide, guided, mixed, sigma, phi)
    assert close(denoised, expected, 10 * (1 + sigma) * (1 + 2 * guidance) * (1 + factor))


def test_each_image_is_rescaled_by_itself() -> None:
    x, out = normal(0, 3, 4, 5, 7), normal(1, 6, 4, 5, 7)
    out[1] *= 9
    together = np.empty_like(x)
    _core.guide(*map(Tensor.from_dlpack, (together, out, x)), 2.0, 7.0, "epsilon", 0.7)
    for image in range(3):
        alone = np.empty_like(x[:1])
        halves = out[[image, image + 3]]
        tensors = map(Tensor.from_dlpack, (alone, halves, x[image : image + 1]))
        _core.guide(*tensors, 2.0, 7.0, "epsilon", 0.7)
        assert (alone[0] == together[image]).all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_without_noise_there_is_nothing_to_rescale(prediction: str) -> None:
    x, out = normal(0, 1, 4, 5, 5), normal(1, 2, 4, 5, 5)
    denoised = np.empty_like(x)
    tensors = [Tensor.from_dlpack(a) for a in (denoised, out, x)]
    _core.guide(*tensors, 0.0, 7.0, prediction, 0.7)
    assert (denoised == x).all()


def test_without_a_second_half_guidance_has_no_part() -> None:
    x, out = normal(0, 2, 4, 5, 5), normal(1, 2, 4, 5, 5)
    denoised = np.empty_like(x)
    tensors = [Tensor.from_dlpack(a) for a in (denoised, out, x)]
    _core.guide(*tensors, 2.0, 7.0, "epsilon")
    assert close(denoised, x.astype(np.float64) - 2.0 * out, 10)


@given(
    st.integers(1, 9000),
    st.lists(st.floats(-3, 3), min_size=1, max_size=14),
    st.one_of(st.none(), st.integers(0, 13)),
    seeds,
)
def test_combine_is_one_weighted_sum_even_over_its_own_source(
    size: int, coefficients: list[float], alias: int | None, seed: int
) -> None:
    sources = [normal(seed + k, size) for k in range(len(coefficients))]
    expected = sum(c * s.astype(np.float64) for c, s in zip(coefficients, sources, strict=True))
    out = np.full(size, np.nan, np.float32) if alias is None else sources[alias % len(sources)]
    _core.combine(Tensor.from_dlpack(out), coefficients, [Tensor.from_dlpack(s) for s in sources])
    assert close(out, np.asarray(expected), 10 * sum(map(abs, coefficients)))


def tensor(*shape: int, dtype: str = "f32") -> Tensor:
    return Tensor.empty(shape, dtype)


WHOLE = tensor(3, 4)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: _core.combine(tensor(4), [], []), "at least one"),
        (lambda: _core.combine(tensor(4), [1.0, 2.0], [tensor(4)]), "one coefficient"),
        (lambda: _core.combine(tensor(4), [1.0], [tensor(5)]), "one shape"),
        (lambda: _core.combine(tensor(4), [1.0], [tensor(4, dtype="i32")]), "f32"),
        (lambda: _core.combine(WHOLE.rows(0, 2), [1.0], [WHOLE.rows(1, 3)]), "lie apart"),
        (lambda: _core.prepare(tensor(3, 4), tensor(3), tensor(1, 4), 1.0, 1.0), "twice"),
        (lambda: _core.prepare(tensor(2, 4), tensor(3), tensor(1, 4), 1.0, 1.0), "timestep"),
        (lambda: _core.prepare(tensor(2, 5), tensor(2), tensor(1, 4), 1.0, 1.0), "twice"),
        (lambda: _core.prepare(WHOLE, tensor(3), WHOLE, 1.0, 1.0), "latent and x share memory"),
        (
            lambda: _core.guide(tensor(1, 4), tensor(2, 4), tensor(1, 4), 1.0, 1.0, "flow"),
            "epsilon, v_prediction",
        ),
        (
            lambda: _core.guide(tensor(2, 4), tensor(2, 4), tensor(1, 4), 1.0, 1.0, "sample"),
            "one shape",
        ),
        (
            lambda: _core.guide(WHOLE, tensor(6, 4), WHOLE, 1.0, 1.0, "sample"),
            "denoised and x share memory",
        ),
        (
            lambda: _core.guide(
                WHOLE.rows(1, 2), WHOLE.rows(1, 3), tensor(1, 4), 1.0, 1.0, "sample"
            ),
            "denoised and predicted share memory",
        ),
        (lambda: _core.philox_normals(tensor(2, 4), [1], 0), "one seed for each"),
        (lambda: _core.TorchGenerator(0).normals(tensor(1, 15), 0), "16"),
        (lambda: _core.TorchGenerator(0).normals(tensor(1, 16), 1), "row"),
    ],
)
def test_wrong_tensors_are_refused_at_the_border(call: object, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("source", [None, 3, np.zeros(4, np.float32)])
def test_a_source_that_is_no_tensor_is_refused(source: object) -> None:
    with pytest.raises(TypeError, match="must be a Tensor"):
        _core.combine(tensor(4), [1.0], [source])  # type: ignore[list-item]


def test_sources_may_be_made_as_they_are_asked_for() -> None:
    rows = Tensor.from_dlpack(np.arange(12, dtype=np.float32).reshape(3, 4))

    class Made(Sequence[Tensor]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, k: int) -> Tensor:  # type: ignore[override]
            if k >= 3:
                raise IndexError
            return rows.rows(k, k + 1)

    out = tensor(1, 4)
    _core.combine(out, [1.0, 1.0, 1.0], Made())
    assert np.asarray(out).tolist() == [[12, 15, 18, 21]]


def test_large_coefficients_that_cancel_lose_no_digits() -> None:
    a = normal(1, 5000)
    b = (a * np.float32(1.0001)).astype(np.float32)
    out = np.empty_like(a)
    _core.combine(Tensor.from_dlpack(out), [-5e3, 5e3], [*map(Tensor.from_dlpack, (a, b))])
    expected = 5e3 * (b.astype(np.float64) - a)
    # Rounded once, to float32: products in float32 would be off by 1e-3.
    assert np.abs(out - expected).max() <= 1e-7 * np.abs(expected).max()
