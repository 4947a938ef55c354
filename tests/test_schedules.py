from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from sdfast import schedules
from sdfast.errors import UnknownSchedule
from sdfast.schedules import NoiseSchedule

SD = NoiseSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)


def test_every_schedule_matches_the_reference(data: Path) -> None:
    cases = json.loads((data / "schedules.json").read_text())["schedules"]
    ours = [case for case in cases if case["name"] in schedules.names()]
    assert {case["name"] for case in ours} == set(schedules.names())
    for case in ours:
        got = schedules.sigmas(case["name"], case["steps"], SD)
        assert got == pytest.approx(case["sigmas"], rel=1e-12), case["name"]


@pytest.mark.parametrize("name", schedules.names())
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50, 999])
def test_schedules_descend_from_the_highest_level_to_zero(name: str, steps: int) -> None:
    sigmas = schedules.sigmas(name, steps, SD)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(SD.sigma_max)
    assert sigmas[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(sigmas))


def test_levels_are_those_of_stable_diffusion() -> None:
    assert SD.sigma_min == pytest.approx(0.029167158, rel=1e-8)
    assert SD.sigma_max == pytest.approx(14.614641, rel=1e-7)


def test_timestep_and_sigma_are_inverse() -> None:
    for t in (0.0, 0.25, 1.0, 10.382, 500.5, 998.75, 999.0):
        assert SD.timestep(SD.sigma(t)) == pytest.approx(t, abs=1e-9)
    assert SD.timestep(0.1) == pytest.approx(10.382, abs=1e-3)
    assert SD.timestep(0.0) == SD.timestep(1e-9) == 0
    assert SD.timestep(1000.0) == 999


def test_every_kind_of_betas_makes_rising_levels() -> None:
    for name in schedules.BETAS:
        sigmas = NoiseSchedule.from_betas(name, 0.0001, 0.02, 1000).sigmas
        assert all(0 < a < b < math.inf for a, b in itertools.pairwise(sigmas))


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownSchedule, match="did you mean 'karras'"):
        schedules.sigmas("karas", 20, SD)
    with pytest.raises(UnknownSchedule, match="scaled_linear"):
        NoiseSchedule.from_betas("scaled", 0.1, 0.2, 10)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 1000"):
        schedules.sigmas("karras", steps, SD)
