from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdfast import samplers
from sdfast.errors import EngineError, InvalidRequest, UnknownSampler

DATA = Path(__file__).parent / "data"
REFERENCE = json.loads((DATA / "samplers.json").read_text())
ARRAYS = np.load(DATA / "samplers.npz")
CASES = [case for case in REFERENCE["cases"] if case["sampler"] in samplers.names()]


class Mixture:
    """The denoiser of the reference cases, the posterior mean of a mixture of two modes, counting
    its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Any, sigma: float) -> Any:
        self.calls += 1
        m, s = REFERENCE["model"]["m"], REFERENCE["model"]["s"]
        v = s * s + sigma * sigma
        return (s * s * x + sigma * sigma * m * np.tanh(m * x / v)) / v


# Relative to the largest value. DEIS's reference integrates by Riemann sums (1e-5 off), ttm's takes
# the network's derivative where ours takes a difference, res's passes its noise through float32.
TOLERANCES = {"deis": 2e-3, "ttm": 5e-3, "res_momentumized": 1e-6}


def drawn_at(case: dict[str, Any], k: int) -> int:
    """Which of the reference's draws our k-th is: of supreme's 2 · substeps + 2 a level, all but
    the last go unused there."""
    if case["sampler"] != "supreme":
        return k
    return int((2 * case["params"].get("substeps", 2) + 2) * (k + 1) - 1)


def draws_of(case: dict[str, Any]) -> int:
    """How often the case has us draw: not where the reference multiplies its noise by 0."""
    levels = len(case["sigmas"]) - 2
    unused = {
        "heunpp2": 0,
        "supreme": levels,
        "dpm_fast": case["draws"] * ("eta" in case["params"]),
    }
    return int(unused.get(case["sampler"], case["draws"]))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['id']}-{c['sampler']}-{c['schedule']}")
def test_sampler_matches_the_reference(case: dict[str, Any]) -> None:
    model, intervals = Mixture(), []

    def noise(sigma: float, sigma_next: float) -> Any:
        intervals.append([sigma, sigma_next])
        return ARRAYS["noise"][drawn_at(case, len(intervals) - 1)]

    x = ARRAYS["x"] * case["sigmas"][0]
    out = samplers.get(case["sampler"]).sample(model, x, case["sigmas"], noise, **case["params"])
    expected = ARRAYS[case["id"]]
    tolerance = TOLERANCES.get(case["sampler"], 1e-9)
    assert np.abs(out - expected).max() <= tolerance * np.abs(expected).max()
    assert (model.calls, len(intervals)) == (case["nfe"], draws_of(case))
    given = case["draw_intervals"]
    if len(given) == len(intervals) and not any(None in pair for pair in given):
        assert intervals == [pytest.approx(pair) for pair in given]


def test_the_reference_has_cases_for_every_sampler_it_knows() -> None:
    assert len(CASES) == 93
    without = set(samplers.names()) - {case["sampler"] for case in CASES}
    # ddim is euler, and euler_ancestral with eta; lcm_custom_noise is lcm: below. The golden
    # numbers have pndm and plms.
    assert without == {"ddim", "lcm_custom_noise", "plms", "pndm"}


SIGMAS = (14.6, 7.0, 2.0, 0.5, 0.03, 0.0)


def run(name: str, **parameters: Any) -> Any:
    draws = iter(ARRAYS["noise"])
    noise = lambda a, b: next(draws)  # noqa: E731
    x = ARRAYS["x"] * SIGMAS[0]
    return samplers.get(name).sample(Mixture(), x, SIGMAS, noise, **parameters)


def test_ddim_is_euler_at_eta_0_and_ancestral_above() -> None:
    assert np.array_equal(run("ddim"), run("euler"))
    assert np.array_equal(run("ddim", eta=0.7), run("euler_ancestral", eta=0.7))


def test_lcm_custom_noise_is_lcm() -> None:
    assert np.array_equal(run("lcm_custom_noise", noise_kind="perlin"), run("lcm"))
    assert samplers.get("lcm_custom_noise").noise_kind({"noise_kind": "perlin"}) == "perlin"


def test_a_schedule_at_the_end_of_a_label_is_left_out() -> None:
    assert samplers.get("DPM++ 2M SDE Exponential").name == "dpmpp_2m_sde"
    assert samplers.labelled_schedule("DPM2 a Karras") == "karras"
    assert samplers.labelled_schedule("DPM2 a") is None


@pytest.mark.parametrize("modulation", ["none", "intensity", "frequency", "spectral_signum"])
@pytest.mark.parametrize("quiet", ["eta", "s_noise"])
def test_supreme_without_noise_has_none_to_modulate(modulation: str, quiet: str) -> None:
    still = run("supreme", noise_modulation=modulation, **{quiet: 0.0})
    assert np.isfinite(still).all()
    if quiet == "eta":
        assert np.array_equal(still, run("supreme", noise_modulation="none", eta=0.0))


def test_dpm_adaptive_needs_noise_only_where_it_has_some() -> None:
    sampler = samplers.get("dpm_adaptive")
    x = ARRAYS["x"] * SIGMAS[0]
    assert np.array_equal(sampler.sample(Mixture(), x, SIGMAS), run("dpm_adaptive"))
    with pytest.raises(ValueError, match="pass noise"):
        sampler.sample(Mixture(), x, SIGMAS, eta=0.5)


def test_dpm_adaptive_ends_where_the_network_fails_or_leads_nowhere() -> None:
    sampler = samplers.get("dpm_adaptive")
    with pytest.raises(EngineError, match="not a finite number"):
        sampler.sample(lambda x, sigma: x * math.nan, ARRAYS["x"], SIGMAS)
    with pytest.raises(EngineError, match="1000 attempts"):
        sampler.sample(Mixture(), ARRAYS["x"], SIGMAS, h_init=0.001, icoeff=0.0)


@pytest.mark.parametrize("middles", [(20.0,), (1.0,)])
def test_a_middle_outside_its_step_is_refused(middles: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match="outside its step"):
        run("pndm", middles=middles)


# Supreme enhances what the network says, and so ends elsewhere.
PLAIN = [name for name in samplers.names() if name != "supreme"]


@pytest.mark.parametrize("name", PLAIN)
def test_one_step_to_zero_returns_the_denoised(name: str) -> None:
    x = ARRAYS["x"] * 14.6
    out = samplers.get(name).sample(Mixture(), x, (14.6, 0.0), lambda a, b: ARRAYS["noise"][0])
    assert np.allclose(out, Mixture()(x, 14.6), rtol=0, atol=1e-12)


def levels(steps: int, last: float = 0.0) -> list[float]:
    return [*np.geomspace(14.6, 0.03, steps), last] if steps > 1 else [14.6, last]


@pytest.mark.parametrize("name", samplers.names())
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_evaluations_are_as_announced(name: str, steps: int) -> None:
    sampler, model = samplers.get(name), Mixture()
    draws = iter(ARRAYS["noise"])
    sampler.sample(model, ARRAYS["x"], levels(steps), lambda a, b: next(draws))
    announced = sampler.evaluations(steps)
    assert model.calls == announced or (announced is None and name == "dpm_adaptive")


@pytest.mark.parametrize("name", samplers.names())
@pytest.mark.parametrize("sigmas", [levels(6)[2:], levels(6)[:4], [0.001, 0.0005, 0.0], [1e-4, 0]])
def test_any_part_of_a_schedule_is_run_to_finite_values(name: str, sigmas: list[float]) -> None:
    draws = iter(ARRAYS["noise"])
    x = ARRAYS["x"] * sigmas[0]
    out = samplers.get(name).sample(Mixture(), x, sigmas, lambda a, b: next(draws))
    assert out.shape == x.shape
    assert np.isfinite(out).all()
    # What is left of the start's noise, or of the last draw, and the picture itself.
    assert np.abs(out).max() <= 3 + 5 * max(sigmas[-1], sigmas[-2])


# The error at σ = 1, from 10, on a smooth denoiser and without noise: doubling the steps divides it
# by 2^order. UniPC's last step is of first order and gives it the second; adams-bashforth's weights
# for equal steps do so on uneven ones, and so does the first, Euler's, step of every multistep.
ORDERS = {
    "ddim": 1,
    "dpmpp_dualsde_momentumized": 1,
    "euler": 1,
    "euler_ancestral": 1,
    "heunpp2": 1,
    "clyb_4m_sde_momentumized": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_3m_sde": 2,
    "dpmpp_sde": 2,
    "heun": 2,
    "ipndm": 2,
    "plms": 2,
    "pndm": 2,
    "res_momentumized": 2,
    "ttm": 2,
    "uni_pc": 2,
    "uni_pc_bh2": 2,
    "dpm_fast": 3,
}
ABOVE_2 = ("deis", "ipndm_v", "lms")  # on their way from their own order to the first step's


def exact(start: float, end: float) -> Any:
    """The ODE dx/dλ = D − x solved by the classic Runge–Kutta method in 2,000 steps of λ: its own
    error is 1e-12."""
    model, x, steps = Mixture(), ARRAYS["x"] * start, 2000
    h = math.log(start / end) / steps
    for k in range(steps):
        sigma, half = start * math.exp(-k * h), math.exp(-h / 2)
        k1 = model(x, sigma) - x
        k2 = model(x + h / 2 * k1, sigma * half) - x - h / 2 * k1
        k3 = model(x + h / 2 * k2, sigma * half) - x - h / 2 * k2
        k4 = model(x + h * k3, sigma * half**2) - x - h * k3
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@pytest.fixture(scope="module")
def solution() -> Any:
    return exact(10, 1)


def measured_order(name: str, solution: Any) -> float:
    sampler = samplers.get(name)
    quiet = {"eta": 0.0, "ita": 0.0, "delta": 1e-6} if name != "ddim" else {}
    parameters = {k: v for k, v in quiet.items() if k in sampler.parameters}
    errors = [
        np.abs(
            sampler.sample(
                Mixture(),
                ARRAYS["x"] * 10,
                np.geomspace(10, 1, steps + 1),
                lambda a, b: 0.0,
                **parameters,
            )
            - solution
        ).max()
        for steps in (95, 191)
    ]
    return math.log(errors[0] / errors[1]) / math.log(191 / 95)


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order(name: str, solution: Any) -> None:
    assert measured_order(name, solution) == pytest.approx(ORDERS[name], abs=0.1)


@pytest.mark.parametrize("name", ABOVE_2)
def test_the_error_of_exact_weights_falls_faster_than_the_second_order(
    name: str, solution: Any
) -> None:
    assert measured_order(name, solution) > 2.1


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpm++ 2m karras", "dpmpp_2m"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        (" Euler A ", "euler_ancestral"),
        ("k_euler", "euler"),
        ("DDIMScheduler", "ddim"),
    ],
)
def test_aliases_find_their_sampler_in_any_case(word: str, name: str) -> None:
    assert samplers.get(word).name == name


def test_an_unknown_sampler_lists_the_nearest() -> None:
    with pytest.raises(UnknownSampler, match=r"did you mean 'dpmpp_2m'.*known: clyb.*ddim"):
        samplers.get("dpmp_2m")


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_says_what_it_is(name: str) -> None:
    sampler = samplers.get(name)
    assert sampler.doc.endswith(".")
    words = " ".join((inspect.getdoc(sampler.function) or "").split())
    assert "Choose it" in words or "usual best choice" in words
    assert "noise" in words or "draw" in words
    assert re.search(r"\b[oO]rder\b", words)
    assert "evaluation" in words or "calls" in words
    assert sampler.paper.startswith("arXiv:") or sampler.paper.endswith(", no paper")
    assert set(sampler.parameters) == set(sampler.ranges)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"eta": -0.1}, "from 0 to 10"),
        ({"eta": math.nan}, "from 0 to 10"),
        ({"eta": "1"}, "number"),
        ({"etta": 1.0}, "did you mean 'eta'"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        run("euler_ancestral", **parameters)


@pytest.mark.parametrize(
    "sigmas", [(), (1.0,), (1.0, 2.0), (1.0, 1.0), (1.0, -0.1), (math.nan, 0.0), (math.inf, 0.0)]
)
def test_sigmas_that_do_not_descend_are_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="sigma"):
        samplers.get("euler").sample(Mixture(), ARRAYS["x"], sigmas)


def test_noise_has_to_be_given_where_it_is_drawn() -> None:
    with pytest.raises(ValueError, match="pass noise"):
        samplers.get("euler_ancestral").sample(Mixture(), ARRAYS["x"], SIGMAS)
