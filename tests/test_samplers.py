from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdfast import samplers
from sdfast.errors import InvalidRequest, UnknownSampler

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


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['id']}-{c['sampler']}-{c['schedule']}")
def test_sampler_matches_the_reference(case: dict[str, Any]) -> None:
    model, intervals = Mixture(), []

    def noise(sigma: float, sigma_next: float) -> Any:
        intervals.append([sigma, sigma_next])
        return ARRAYS["noise"][len(intervals) - 1]

    x = ARRAYS["x"] * case["sigmas"][0]
    out = samplers.get(case["sampler"]).sample(model, x, case["sigmas"], noise, **case["params"])
    expected = ARRAYS[case["id"]]
    assert np.abs(out - expected).max() <= 1e-9 * np.abs(expected).max()
    assert (model.calls, len(intervals)) == (case["nfe"], case["draws"])
    given = [pair for pair in case["draw_intervals"] if None not in pair]
    if given:
        assert intervals == [pytest.approx(pair) for pair in given]


def test_the_reference_has_cases_for_every_sampler_it_knows() -> None:
    without = set(samplers.names()) - {case["sampler"] for case in CASES}
    assert without <= {"ddim"}  # which is euler, and euler_ancestral with eta: below


SIGMAS = (14.6, 7.0, 2.0, 0.5, 0.03, 0.0)


def run(name: str, **parameters: Any) -> Any:
    draws = iter(ARRAYS["noise"])
    noise = lambda a, b: next(draws)  # noqa: E731
    x = ARRAYS["x"] * SIGMAS[0]
    return samplers.get(name).sample(Mixture(), x, SIGMAS, noise, **parameters)


def test_ddim_is_euler_at_eta_0_and_ancestral_above() -> None:
    assert np.array_equal(run("ddim"), run("euler"))
    assert np.array_equal(run("ddim", eta=0.7), run("euler_ancestral", eta=0.7))


@pytest.mark.parametrize("name", samplers.names())
def test_one_step_to_zero_returns_the_denoised(name: str) -> None:
    x = ARRAYS["x"] * 14.6
    out = samplers.get(name).sample(Mixture(), x, (14.6, 0.0), lambda a, b: ARRAYS["noise"][0])
    assert np.allclose(out, Mixture()(x, 14.6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", samplers.names())
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_evaluations_are_as_announced(name: str, steps: int) -> None:
    sampler, model = samplers.get(name), Mixture()
    sigmas = [*np.geomspace(14.6, 0.03, steps), 0.0] if steps > 1 else [14.6, 0.0]
    draws = iter(ARRAYS["noise"])
    sampler.sample(model, ARRAYS["x"], sigmas, lambda a, b: next(draws))
    assert model.calls == sampler.evaluations(steps)


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
    with pytest.raises(UnknownSampler, match=r"did you mean 'dpmpp_2m'.*known: ddim"):
        samplers.get("dpmp_2m")


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_says_what_it_is(name: str) -> None:
    sampler = samplers.get(name)
    assert sampler.doc.endswith((".", ";", "choice."))
    assert sampler.paper.startswith("arXiv:")
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
