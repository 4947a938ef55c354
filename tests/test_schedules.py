from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from sdfast import schedules
from sdfast.errors import InvalidRequest, UnknownSchedule
from sdfast.schedules import NoiseSchedule
from sdfast.schedules.incomplete_beta import log_regularised, quantile

SD = NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)
ZERO_TERMINAL = NoiseSchedule.from_betas(
    "scaled_linear", 0.00085, 0.012, 1000, zero_terminal_snr=True
)

EVERY = (
    *("align_your_steps", "beta", "ddim_uniform", "exponential", "karras", "kl_optimal"),
    *("leading", "linear_quadratic", "linspace", "normal", "polyexponential", "sgm_uniform"),
    *("simple", "trailing"),
)

# Of ComfyUI and k-diffusion, in float32, ten steps unless the parameters say more; printed to six
# decimals.
GOLDEN: dict[str, tuple[dict[str, Any], str]] = {
    "karras": (
        {},
        "14.614643 9.102929 5.478392 3.168605 1.749418 .914073 .446918 .201398 .081910 .029167",
    ),
    "exponential": (
        {},
        "14.614640 7.324869 3.671230 1.840024 .922221 .462218 .231664 .116110 .058195 .029167",
    ),
    "polyexponential": (
        {"rho": 2},
        "14.614643 3.964092 1.253613 .462218 .198699 .099588 .058195 .039648 .031494 .029167",
    ),
    "normal": (
        {},
        "14.614640 7.839883 4.609174 2.918307 1.950161 1.344928 .932358 .624977 .368658 .029167",
    ),
    "sgm_uniform": (
        {},
        "14.614640 8.307171 5.092408 3.325069 2.279731 1.615580 1.162865 .831884 .571189 .343705",
    ),
    "simple": (
        {},
        "14.614641 8.302803 5.087763 3.321083 2.276463 1.612886 1.160578 .829860 .569285 .341674",
    ),
    "ddim_uniform": (
        {},
        "8.390685 5.134431 3.347764 2.292854 1.623692 1.168216 .835653 .574050 .346187 .041314",
    ),
    "beta": (
        {},
        "14.614641 11.542770 7.371844 4.372802 2.615236 1.618279 1.027329 .654885 .395510 .199059",
    ),
    "linear_quadratic": (
        {},
        "14.614641 14.541568 14.468495 14.395422 14.322349 "
        "14.249275 13.620845 11.881703 9.031848 5.071280",
    ),
    "kl_optimal": (
        {},
        "14.614633 4.232350 2.393719 1.597066 1.132997 .815244 .572914 .372484 .195288 .029167",
    ),
    "align_your_steps": (
        {"steps": 12},
        "14.614641 7.415506 4.589205 3.226626 2.391697 1.791986 "
        "1.394380 1.025396 .743122 .509389 .288335 .115137",
    ),
}


def of(scheduler: Any) -> NoiseSchedule:
    """The trained levels of a diffusers scheduler, which are float32."""
    kept = scheduler.alphas_cumprod.double().tolist()
    levels = tuple(math.sqrt((1 - a) / a) for a in kept)
    return NoiseSchedule(levels, tuple(map(math.log, levels)))


def test_every_schedule_of_the_field_is_there() -> None:
    assert schedules.names() == EVERY


def test_every_schedule_matches_the_reference(data: Path) -> None:
    cases = json.loads((data / "schedules.json").read_text())["schedules"]
    assert len(cases) == 40
    for case in cases:
        got = schedules.sigmas(case["name"], case["steps"], SD)
        # Both sides are float64 of the same formulas, in another order of operations.
        assert got == pytest.approx(case["sigmas"], rel=1e-12), (case["name"], case["steps"])


@pytest.mark.parametrize("name", GOLDEN)
def test_ten_steps_have_the_values_of_the_programs_that_define_them(name: str) -> None:
    parameters, values = GOLDEN[name]
    got = schedules.sigmas(name, **{"steps": 10, "ns": SD, **parameters})
    # They were computed in float32 and are printed to six decimals.
    assert got == pytest.approx([*map(float, values.split()), 0], rel=2e-6, abs=5.1e-7)


def length(name: str, steps: int) -> int:
    """The levels above 0 of a schedule of SD whose neighbours all differ."""
    if name == "ddim_uniform":
        return math.ceil(999 / (1000 // steps))
    return 999 if (name, steps) == ("leading", 1000) else steps


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EVERY), st.integers(1, 1000), st.booleans())
def test_schedules_descend_to_zero_in_as_many_steps_as_they_say(
    name: str, steps: int, zero_terminal_snr: bool
) -> None:
    ns = ZERO_TERMINAL if zero_terminal_snr else SD
    sigmas = schedules.sigmas(name, steps, ns)
    assert all(a > b for a, b in itertools.pairwise(sigmas))
    assert sigmas[-1] == 0
    assert sigmas[0] <= ns.sigma_max * (1 + 1e-12)  # exp, tan and powers round
    if name == "beta":  # coinciding timesteps merge: 0.847 of them are left at worst
        assert steps * 0.8 < len(sigmas) - 1 <= steps
    else:
        assert len(sigmas) - 1 == length(name, steps)


@pytest.mark.parametrize("name", EVERY)
def test_one_step_goes_from_one_level_to_zero(name: str) -> None:
    # These count timesteps from below, so that one step visits the lowest: so do their origins.
    low = {"ddim_uniform": 1, "leading": 1, "linspace": 0}
    level, end = schedules.sigmas(name, 1, SD)
    # 1e-10: the eleven levels of align_your_steps are published with ten decimals.
    assert level == pytest.approx(SD.sigmas[low.get(name, 999)], rel=1e-10)
    assert end == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1000), st.floats(0.1, 100), st.floats(0.1, 50), st.floats(0.1, 50))
def test_schedules_descend_to_zero_at_any_parameters(
    steps: int, rho: float, alpha: float, beta: float
) -> None:
    for name, parameters in (
        ("karras", {"rho": rho}),
        ("polyexponential", {"rho": rho}),
        ("linear_quadratic", {"threshold": min(rho, 50) / 100}),
        ("beta", {"alpha": alpha, "beta": beta}),
    ):
        sigmas = schedules.sigmas(name, steps, SD, **parameters)
        assert all(a > b for a, b in itertools.pairwise(sigmas)), name
        assert sigmas[-1] == 0
        assert 2 <= len(sigmas) <= steps + 1


@pytest.mark.parametrize(
    ("name", "steps", "levels"),
    [
        *[("ddim_uniform", 7, 8), ("ddim_uniform", 10, 10), ("ddim_uniform", 30, 31)],
        *[("beta", 100, 100), ("beta", 150, 149), ("beta", 200, 199), ("beta", 300, 293)],
        ("leading", 1000, 999),
    ],
)
def test_schedules_that_give_another_number_of_steps_keep_it(
    name: str, steps: int, levels: int
) -> None:
    assert len(schedules.sigmas(name, steps, SD)) - 1 == levels


@pytest.mark.parametrize("shape", [(0.6, 0.6), (0.5, 0.5), (0.3, 0.9), (1, 1), (5, 2), (50, 50)])
def test_beta_rounds_the_quantiles_of_scipy(shape: tuple[float, float]) -> None:
    for steps in (1, 2, 5, 10, 20, 33, 50, 77, 150, 200, 300, 1000):
        places = scipy.stats.beta.ppf(1 - np.arange(steps) / steps, *shape) * 999
        # scipy's medians are off 1/2 by some 1e-16, either way: ties are made ties first.
        picked = [int(t) for t, _ in itertools.groupby(np.rint(places.round(9)))]
        expected = (*(SD.sigmas[t] for t in picked), 0.0)
        got = schedules.sigmas("beta", steps, SD, alpha=shape[0], beta=shape[1])
        assert got == expected, steps


@settings(max_examples=500, deadline=None)
@given(st.just(0.0) | st.floats(1e-12, 1), st.floats(0.1, 50), st.floats(0.1, 50))
def test_the_beta_quantile_is_that_of_scipy(p: float, a: float, b: float) -> None:
    # Ours takes any p; scipy's is NaN for some far below those that a schedule asks for.
    assert quantile(p, a, b) == pytest.approx(scipy.special.betaincinv(a, b, p), abs=1e-10)


@settings(max_examples=500, deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.1, 50), st.floats(0.1, 50))
def test_the_incomplete_beta_function_is_that_of_scipy(x: float, a: float, b: float) -> None:
    ours = math.exp(log_regularised(x, a, b))
    assert ours == pytest.approx(scipy.special.betainc(a, b, x), abs=1e-12)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spacings_are_those_of_diffusers(spacing: str) -> None:
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing=spacing,
        steps_offset=1,
    )
    ns = of(scheduler)
    # Not every number: diffusers adds up T / steps in float, which puts a tie on the wrong side
    # (first at 48 steps, trailing) or takes a step too many (first at 61).
    for steps in (*range(1, 48), 50, 60, 75, 99, 100, 200, 250, 333, 500, 999):
        scheduler.set_timesteps(steps)
        got = schedules.sigmas(spacing, steps, ns)
        # 1e-6: its timesteps and sigmas are float32.
        assert got == pytest.approx(scheduler.sigmas.tolist(), rel=1e-6), steps
        times = [ns.timestep(sigma) for sigma in got[:-1]]
        # σ is linear between timesteps here, ln σ in `timestep`: at most 0.05 apart, next to 0.
        assert times == pytest.approx(scheduler.timesteps.tolist(), abs=0.05), steps


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_whole_timesteps_are_those_of_diffusers(spacing: str) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    for steps in (1, 2, 4, 7, 10, 20, 30, 47, 100):
        scheduler.set_timesteps(steps)
        got = [SD.timestep(sigma) for sigma in schedules.sigmas(spacing, steps, SD)[:-1]]
        assert got == pytest.approx(scheduler.timesteps.tolist(), abs=1e-9)


def test_levels_are_those_of_stable_diffusion() -> None:
    assert SD.sigma_min == pytest.approx(0.029167158, rel=1e-8)
    assert SD.sigma_max == pytest.approx(14.614641, rel=1e-7)


def test_zero_terminal_snr_leaves_the_first_level_and_raises_the_last() -> None:
    sigmas = ZERO_TERMINAL.sigmas
    assert sigmas[0] == pytest.approx(SD.sigma_min, rel=1e-12)  # 1 − ᾱ cancels three digits
    assert sigmas[-1] == pytest.approx(4518.76, abs=0.005)
    assert sigmas[-2] == pytest.approx(2254.24, abs=0.005)
    assert all(a < b for a, b in itertools.pairwise(sigmas))


def test_timesteps_have_the_levels_of_k_diffusion_between() -> None:
    levels = {0: 0.0291672, 1: 0.0413144, 20: 0.1379907, 500: 1.6182789, 500.5: 1.6209832}
    for t, sigma in {**levels, 998.5: 14.570389, 999: 14.614640}.items():
        # Printed to seven decimals, and to float32's precision.
        assert SD.sigma(t) == pytest.approx(sigma, rel=2e-6, abs=5.1e-8)
    for sigma, t in {14: 991.8844, 5: 795.1731, 1: 353.8904, 0.1: 10.3822, 0.03: 0.0809}.items():
        assert SD.timestep(sigma) == pytest.approx(t, abs=1e-4)  # printed to four decimals


def test_timestep_and_sigma_are_inverse() -> None:
    for t in (0.0, 0.25, 1.0, 10.382, 500.5, 998.75, 999.0):
        assert SD.timestep(SD.sigma(t)) == pytest.approx(t, abs=1e-9)
    assert SD.timestep(0.0) == SD.timestep(1e-9) == 0
    assert SD.timestep(1000.0) == 999


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_every_kind_of_betas_makes_rising_levels(zero_terminal_snr: bool) -> None:
    for name in schedules.BETAS:
        ns = NoiseSchedule.from_betas(
            name, 0.00085, 0.012, 1000, zero_terminal_snr=zero_terminal_snr
        )
        assert all(0 < a < b < math.inf for a, b in itertools.pairwise(ns.sigmas))


def test_zero_terminal_snr_is_refused_where_the_floor_is_above_the_last_but_one() -> None:
    with pytest.raises(ValueError, match="cannot be rescaled to zero terminal SNR"):
        NoiseSchedule.from_betas("linear", 0.0001, 0.02, 1000, zero_terminal_snr=True)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_betas_are_those_of_diffusers(name: str) -> None:
    scheduler = DDIMScheduler(beta_schedule=name, beta_start=0.001, beta_end=0.02)
    ours = NoiseSchedule.from_betas(name, 0.001, 0.02, 1000)
    # diffusers multiplies float32 numbers near 1, each off by up to 6e-8, and the first 1 − ᾱ of
    # the cosine is 4e-5.
    assert ours.sigmas == pytest.approx(of(scheduler).sigmas, rel=1e-3)


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 0.02), (-0.1, 0.02), (0.1, 1.0), (0.9, 0.99), (math.nan, 0.02)]
)
def test_betas_that_leave_no_signal_are_refused(name: str, start: float, end: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        NoiseSchedule.from_betas(name, start, end, 1000)


def test_the_penultimate_sigma_is_discarded_and_the_zero_kept() -> None:
    assert schedules.discard_penultimate((3.0, 2.0, 1.0, 0.0)) == (3.0, 2.0, 0.0)
    full = schedules.sigmas("karras", 21, SD)
    assert schedules.discard_penultimate(full) == (*full[:20], 0.0)
    with pytest.raises(ValueError, match="3 or more"):
        schedules.discard_penultimate((1.0, 0.0))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        *[("Karras", "karras"), ("KarrasScheduler", "karras"), ("use_karras_sigmas", "karras")],
        *[("Exponential", "exponential"), ("Polyexponential", "polyexponential")],
        *[("Automatic", "normal"), ("Uniform", "normal"), (" NORMAL ", "normal")],
        *[("SGM Uniform", "sgm_uniform"), ("sgm-uniform", "sgm_uniform"), ("Simple", "simple")],
        *[("DDIM", "ddim_uniform"), ("Beta", "beta"), ("Linear Quadratic", "linear_quadratic")],
        *[("KL Optimal", "kl_optimal"), ("Align Your Steps", "align_your_steps")],
        *[("AYS", "align_your_steps"), ("Trailing", "trailing"), ("leading", "leading")],
    ],
)
def test_other_programs_names_are_understood(alias: str, name: str) -> None:
    assert schedules.get(alias) == name
    assert schedules.sigmas(alias, 5, SD) == schedules.sigmas(name, 5, SD)


def test_align_your_steps_is_the_table_of_the_family() -> None:
    table = schedules.curves.ALIGNED["sdxl"]
    got = schedules.sigmas("align_your_steps", 10, SD, family="sdxl")
    assert got == pytest.approx((*table[:-1], 0.0), rel=1e-14)  # exp(ln σ)
    assert got != schedules.sigmas("align_your_steps", 10, SD)


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownSchedule, match="did you mean 'karras'"):
        schedules.sigmas("karas", 20, SD)
    with pytest.raises(UnknownSchedule, match="scaled_linear"):
        NoiseSchedule.from_betas("scaled", 0.1, 0.2, 10)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True])
def test_steps_out_of_range_are_refused(steps: Any) -> None:
    with pytest.raises(InvalidRequest, match="from 1 to 1000"):
        schedules.sigmas("karras", steps, SD)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("karras", {"rho": 0}, "rho of schedule karras is 0; it must be a number from 0.1 to 100"),
        ("polyexponential", {"rho": math.nan}, "rho of schedule polyexponential is nan"),
        ("beta", {"alpha": "0.6"}, "alpha of schedule beta is '0.6'; it must be a number"),
        ("beta", {"alhpa": 0.6}, "schedule beta has no parameter 'alhpa'; did you mean 'alpha'"),
        ("simple", {"rho": 7}, "schedule simple has no parameter 'rho'; it has: none"),
        ("linear_quadratic", {"threshold": 0.6}, "it must be a number from 0.001 to 0.5"),
        ("align_your_steps", {"family": "sd3"}, "it must be one of sd1, sdxl"),
    ],
)
def test_parameters_that_a_schedule_does_not_take_are_refused(
    name: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message.replace("'", ".").replace("?", ".")):
        schedules.sigmas(name, 10, SD, **parameters)
