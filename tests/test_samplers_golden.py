"""Golden numbers of a scalar run, and of supreme on a small tensor: what the implementations that
each sampler is known from return, to the digits they were written down with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sdfast import samplers

SIGMAS = (14.6, 7.0, 3.0, 1.0, 0.3, 0.0)
SIX = (14.6, 9.0, 7.0, 3.0, 1.0, 0.3, 0.0)
SEVEN = (14.6, 12.0, 9.0, 7.0, 3.0, 1.0, 0.3, 0.0)


def denoised(x: Any, sigma: float) -> Any:
    v = 0.09 + sigma**2
    return (0.09 * x + 0.8 * sigma**2 * np.tanh(0.8 * x / v)) / v


class Run:
    """A sampler's run on that denoiser, counting calls and draws."""

    def __init__(
        self,
        name: str,
        parameters: dict[str, Any],
        x: Any,
        draw: Callable[[int], Any],
        sigmas: tuple[float, ...] = SIGMAS,
    ) -> None:
        self.calls = self.draws = 0

        def model(z: Any, sigma: float) -> Any:
            self.calls += 1
            return denoised(z, sigma)

        def noise(sigma: float, sigma_next: float) -> Any:
            self.draws += 1
            return draw(self.draws - 1)

        self.result = samplers.get(name).sample(model, x, sigmas, noise, **parameters)


# Where a reference draws noise that it multiplies by 0 (heunpp2, dpm_fast at eta 0), none is drawn.
@pytest.mark.parametrize(
    ("name", "parameters", "sigmas", "expected", "evaluations", "draws"),
    [
        ("euler", {}, SIGMAS, 0.592996975629, 5, 0),
        ("euler", {"s_churn": 2.0}, SIGMAS, 0.535681629933, 5, 5),
        ("euler_ancestral", {}, SIGMAS, -0.467354086786, 5, 4),
        ("euler_ancestral_dancing", {}, SIGMAS, -0.667766975164, 5, 7),
        ("euler_ancestral_dancing", {"eta_dance": 0.0}, SIGMAS, 0.324896542477, 5, 7),
        ("heun", {}, SIGMAS, 0.817847819105, 9, 0),
        ("heunpp2", {}, SIGMAS, 0.613469060251, 12, 0),
        ("lms", {}, SIGMAS, 0.695686674732, 5, 0),
        ("ipndm", {}, SIGMAS, 0.847770269046, 5, 0),
        ("dpm_2", {}, SIGMAS, 0.797202915377, 9, 0),
        ("dpm_2_ancestral", {}, SIGMAS, -0.815887741986, 9, 4),
        ("dpm_fast", {}, SIGMAS, 0.918412679824, 5, 0),
        ("dpm_fast", {}, SIX, 0.474158953875, 6, 0),
        ("dpm_fast", {"eta": 0.5}, SEVEN, 0.611385034226, 7, 3),
        ("dpm_adaptive", {}, SIGMAS, 0.708753721914, 18, 6),
        ("dpm_adaptive", {"order": 2}, SIGMAS, 0.689342128022, 22, 9),
        ("dpm_adaptive", {"eta": 0.5}, SIGMAS, 0.680356507325, 27, 7),
        ("dpmpp_2m", {}, SIGMAS, 0.662975903095, 5, 0),
        ("dpmpp_2m_sde", {}, SIGMAS, -0.655214556088, 5, 4),
        ("dpmpp_2m_sde", {"solver_type": "heun"}, SIGMAS, -0.708649562686, 5, 4),
        ("dpmpp_sde", {}, SIGMAS, -0.447941826100, 9, 8),
        ("dpmpp_2s_ancestral", {}, SIGMAS, -0.602094186532, 9, 4),
        ("dpmpp_3m_sde", {}, SIGMAS, -0.874507438173, 5, 4),
        ("dpmpp_3m_sde", {"eta": 0.0}, SIGMAS, 0.715600227466, 5, 0),
        ("dpmpp_3m_sde_dynamic_eta", {}, SIGMAS, -0.794059354676, 5, 4),
        ("ddpm", {}, SIGMAS, -0.467354086786, 5, 4),
        ("lcm", {}, SIGMAS, -0.520979611026, 5, 4),
        ("lcm_custom_noise", {"noise_kind": "perlin"}, SIGMAS, -0.520979611026, 5, 4),
        ("uni_pc", {}, SIGMAS, 0.721437769860, 5, 0),
        ("uni_pc_bh2", {}, SIGMAS, 0.682798779922, 5, 0),
        ("res_momentumized", {}, SIGMAS, 0.671393217819, 9, 5),
        ("res_momentumized", {"ita": 0.0, "momentum": 0.5}, SIGMAS, 0.751216677605, 9, 5),
        ("res_momentumized", {"momentum": 0.5}, SIGMAS, 0.689945259666, 9, 5),
        ("dpmpp_dualsde_momentumized", {}, SIGMAS, -0.558606377316, 9, 8),
        ("dpmpp_dualsde_momentumized", {"momentum": 0.5}, SIGMAS, -0.591922850412, 9, 8),
        ("clyb_4m_sde_momentumized", {}, SIGMAS, -0.843334462227, 5, 4),
        ("clyb_4m_sde_momentumized", {"momentum": 0.5}, SIGMAS, -0.885368985352, 5, 4),
        ("plms", {}, SIGMAS, 0.849479055873, 6, 0),
        ("pndm", {}, SIGMAS, 0.876373973597, 14, 0),
        ("ddim", {"eta": 0.5}, SIGMAS, 0.458935940377, 5, 4),
    ],
)
def test_a_scalar_run_ends_at_its_golden_number(
    name: str,
    parameters: dict[str, Any],
    sigmas: tuple[float, ...],
    expected: float,
    evaluations: int,
    draws: int,
) -> None:
    run = Run(name, parameters, np.float64(7.3), lambda k: math.cos(1.7 * k + 0.3), sigmas)
    assert run.result == pytest.approx(expected, rel=0, abs=1e-11)
    assert (run.calls, run.draws) == (evaluations, draws)


@pytest.mark.parametrize(
    ("eta", "expected", "draws"), [(1.0, -0.835776635303, 4), (0.0, 0.736190862613, 0)]
)
def test_ttm_comes_to_the_true_derivative_as_delta_shrinks(
    eta: float, expected: float, draws: int
) -> None:
    errors = []
    for delta in (1e-2, 1e-3, 1e-4):
        parameters = {"eta": eta, "delta": delta}
        run = Run("ttm", parameters, 7.3, lambda k: math.cos(1.7 * k + 0.3))
        assert (run.calls, run.draws) == (9, draws)
        errors.append(abs(run.result - expected))
    assert errors[1] < 0.15 * errors[0] < 0.15 * 0.05
    assert errors[2] < 0.15 * errors[1]


OFF = {
    "centralization": 0.0,
    "normalization": 0.0,
    "edge_enhancement": 0.0,
    "perphist": 0.0,
    "noise_modulation": "none",
}
NODE = {"centralization": 0.02, "normalization": 0.01, "edge_enhancement": 0.05, "perphist": 0.0}


def both(method: str) -> dict[str, Any]:
    return {**OFF, "step_method": method, "substep_method": method}


@pytest.mark.parametrize(
    ("parameters", "first", "last", "total", "evaluations"),
    [
        ({}, -0.5918616349, -0.4841604243, 15.4841071502, 14),
        (NODE, -0.4755378610, -0.5166915013, 15.4100010151, 14),
        (OFF, -0.4716132152, -0.5296183158, 15.1077638492, 14),
        (both("dpm_2s"), 0.8957167391, -0.5674231620, -5.1020873834, 21),
        (both("dpm_3s"), 0.5791407157, -0.4772996046, 2.3767603003, 28),
        (both("rk4"), 0.5113788526, -0.4845522014, 4.4555290369, 35),
        (both("rkf45"), 0.1916698990, -0.5718351012, 6.2201652989, 42),
        (both("bogacki_shampine"), -0.5448492811, -0.7968849848, 32.7748236794, 28),
        (both("trapezoidal"), 0.2198261816, -0.6477485330, 11.1006700494, 21),
        (both("reversible_heun"), -1.3058089008, -2.0465239092, 55.4100301902, 21),
        (both("reversible_heun_1s"), 2.5816498830, 2.2412329014, -66.8745133566, 15),
        (both("RES"), -0.0285556067, -0.6222219178, 12.3180972268, 21),
        (
            {**OFF, "step_method": "dynamic", "eta": 0.3},
            0.1713394020,
            -0.8087058713,
            25.1849959655,
            18,
        ),
        (
            {**OFF, "step_method": "adaptive_rk", "eta": 0.3},
            0.0837058146,
            -0.7726847053,
            23.9577171189,
            18,
        ),
        ({**OFF, "edge_enhancement": 0.25}, -0.4995964459, -0.4446578108, 15.5787854273, 14),
        ({**OFF, "centralization": 0.05}, -0.4809571387, -0.5264518135, 14.6933783358, 14),
        ({**OFF, "normalization": 0.05}, -0.4724675671, -0.5484617925, 16.6486213444, 14),
        ({**OFF, "perphist": 0.5}, -0.5043348640, -0.5212502277, 15.3188840391, 14),
        (
            {**OFF, "noise_modulation": "intensity", "modulation_dims": 1},
            -0.4938799475,
            -0.5093311402,
            13.9348759272,
            14,
        ),
        (
            {**OFF, "noise_modulation": "frequency", "modulation_dims": 1},
            -0.4746621763,
            -0.6839813904,
            8.2683120728,
            14,
        ),
        (
            {**OFF, "noise_modulation": "intensity", "modulation_dims": 2},
            -0.5363920841,
            -0.5016193158,
            13.3830692853,
            14,
        ),
        (
            {**OFF, "noise_modulation": "frequency", "modulation_dims": 2},
            -0.5798991545,
            -0.6084678544,
            8.9511314389,
            14,
        ),
        (
            {**OFF, "noise_modulation": "spectral_signum", "modulation_dims": 3},
            0.1241003848,
            -0.6164221516,
            4.0190961978,
            14,
        ),
    ],
)
def test_supreme_ends_at_its_golden_numbers(
    parameters: dict[str, Any], first: float, last: float, total: float, evaluations: int
) -> None:
    c, r, q = np.ogrid[:4, :4, :4]
    x = 14.6 * np.sin(0.7 * c + 0.3 * r + 0.5 * q + 0.2)[None]

    def draw(k: int) -> Any:  # of six draws a level the reference uses the last
        return np.sqrt(2) * np.cos(1.7 * (6 * k + 5) + 0.3 + 0.9 * c + 0.4 * r + 0.6 * q)[None]

    run = Run("supreme", parameters, x, draw)
    out = run.result[0]
    got = (float(out[0, 0, 0]), float(out[3, 3, 3]), float(out.sum()))
    assert got == pytest.approx((first, last, total), rel=0, abs=2e-9)
    assert (run.calls, run.draws) == (evaluations, 4)
