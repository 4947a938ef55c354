from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdfast import program, samplers
from sdfast.errors import InvalidProgram, InvalidRequest, UnknownSampler
from sdfast.program import Combine, Eval, Noise, Program
from sdfast.ranges import Choice, Flag, Listed
from sdfast.samplers import registry

Array = np.ndarray[Any, np.dtype[np.float64]]


def model(x: Array, sigma: float) -> Array:
    return np.tanh(x / (1 + sigma)) * 0.8


def stream(kind: str) -> Callable[[float, float], Array]:
    """noise(σ, σ′): one draw after the other, or a function of the levels where it is brownian."""
    rng = np.random.default_rng(5)

    def draw(sigma: float, sigma_next: float) -> Array:
        own = np.random.default_rng([int(sigma * 1e6), int(sigma_next * 1e6)])
        return (own if kind == "brownian" else rng).standard_normal((1, 4, 3, 3))

    return draw


def interpret(traced: Program, x: Array) -> tuple[Array, float]:
    """What a program means, in NumPy and float64, and the largest term on the way; slots begin as
    NaN, so that reading one that was never written shows."""
    largest = 0.0
    slots = [np.full_like(x, np.nan) for _ in range(traced.slots)]
    slots[0] = x
    noise = stream(traced.noise)
    for instruction in traced.instructions:
        if isinstance(instruction, Eval):
            assert instruction.out != instruction.x
            slots[instruction.out] = model(slots[instruction.x], instruction.sigma)
        elif isinstance(instruction, Combine):
            terms = [c * slots[slot] for c, slot in instruction.terms]
            largest = max(largest, *(float(np.abs(term).max()) for term in terms))
            slots[instruction.out] = sum(terms)
        else:
            slots[instruction.out] = noise(instruction.sigma, instruction.sigma_next)
    return slots[traced.result], largest


def coefficients(instruction: Any) -> list[float]:
    return [c for c, _ in instruction.terms] if isinstance(instruction, Combine) else []


levels = st.lists(
    st.floats(1e-3, 100), min_size=1, max_size=30, unique_by=lambda s: round(s, 4)
).map(lambda s: (*sorted(s, reverse=True), 0.0))


STATIC = [name for name in samplers.names() if samplers.get(name).static]


@pytest.mark.parametrize("name", STATIC)
@given(sigmas=levels)
def test_a_program_does_what_its_function_does(name: str, sigmas: tuple[float, ...]) -> None:
    x = np.random.default_rng(1).standard_normal((1, 4, 3, 3)) * sigmas[0]
    sampler = samplers.get(name)
    expected = sampler.sample(model, x, sigmas, stream(sampler.noise))
    traced = program.trace(name, sigmas)
    # Sums in another order: rounding of float64, relative to the largest coefficients and values on
    # the way. Divided by steps of a thousandth and less, differences lose digits.
    width = max((abs(c) for i in traced.instructions for c in coefficients(i)), default=1.0)
    found, way = interpret(traced, x)
    largest = max(10 * sigmas[0], np.abs(expected).max(), way)
    assert np.abs(found - expected).max() <= 1e-13 * max(width, 100) * largest
    assert traced.evaluations == sampler.evaluations(len(sigmas) - 1)


def drawn_from(allowed: Any, default: Any) -> st.SearchStrategy[Any]:
    """Values of a parameter: its ends, its default, and between."""
    if isinstance(allowed, Choice):
        return st.sampled_from(allowed.words)
    if isinstance(allowed, Flag):
        return st.booleans()
    if isinstance(allowed, Listed):
        return st.just(default)
    if allowed.whole:
        return st.integers(int(allowed.low), int(allowed.high))
    high = min(allowed.high, 20.0)
    return st.sampled_from([allowed.low, default, high]) | st.floats(allowed.low, high)


@st.composite
def own_parameters(draw: st.DrawFn, name: str) -> dict[str, Any]:
    sampler = samplers.get(name)
    return {
        parameter: draw(drawn_from(sampler.ranges[parameter], default))
        for parameter, default in sampler.parameters.items()
    }


@pytest.mark.parametrize("name", STATIC)
@given(data=st.data())
@settings(max_examples=25)
def test_a_program_does_what_its_function_does_at_any_parameters(
    name: str, data: st.DataObject
) -> None:
    parameters = data.draw(own_parameters(name))
    sigmas = (14.6, 7.0, 3.0, 1.5, 0.7, 0.2, 0.05, 0.0)
    x = np.random.default_rng(1).standard_normal((1, 4, 3, 3)) * sigmas[0]
    sampler = samplers.get(name)
    noise = stream(sampler.noise_kind(parameters))
    expected = sampler.sample(model, x, sigmas, noise, **parameters)
    traced = program.trace(name, sigmas, **parameters)
    assert np.isfinite(expected).all()
    got, _ = interpret(traced, x)
    # ttm divides by a delta that may be a millionth.
    assert np.abs(got - expected).max() <= 1e-8 * max(100, np.abs(expected).max())


SIGMAS = (14.6, 7.0, 2.0, 0.5, 0.03, 0.0)


@pytest.mark.parametrize(
    ("name", "parameters", "slots"),
    [
        ("euler", {}, 2),  # x, D
        ("ddim", {}, 2),
        ("euler_ancestral", {}, 3),  # x, D, noise
        ("dpmpp_2m", {}, 3),  # x, D, the D before
        ("heun", {}, 4),  # x, D, the point ahead, its D
        ("lms", {}, 5),  # x, D, three slopes
        ("lms", {"order": 2}, 3),
        ("uni_pc", {}, 6),  # x, base, the newest D, three D before
        ("dpm_fast", {}, 4),
        ("pndm", {}, 8),  # x, its four slopes and two before, D
        ("deis", {}, 4),
        ("heunpp2", {}, 5),
        ("clyb_4m_sde_momentumized", {}, 6),  # x, noise, four D
    ],
)
def test_slots_are_as_few_as_the_method_needs(
    name: str, parameters: dict[str, Any], slots: int
) -> None:
    assert program.trace(name, SIGMAS, **parameters).slots == slots


def test_a_step_of_a_multistep_method_is_one_call_and_one_pass() -> None:
    kinds = [type(i) for i in program.trace("dpmpp_2m", SIGMAS).instructions]
    assert kinds == [Eval, Combine] * 4 + [Eval]  # the last step ends at D itself


def test_draws_that_nothing_reads_are_left_out_where_none_follows() -> None:
    still = program.trace("dpm_2_ancestral", SIGMAS, eta=0.0)
    assert not any(isinstance(i, Noise) for i in still.instructions)
    path = program.trace("dpmpp_sde", SIGMAS, s_noise=0.0)
    assert not any(isinstance(i, Noise) for i in path.instructions)
    # The second draw of a dancing step is read, so the first moves the stream on.
    dancing = program.trace("euler_ancestral_dancing", SIGMAS)
    kinds = [type(i) for i in dancing.instructions[:4]]
    assert kinds.count(Noise) == 2


def test_draws_keep_their_order_and_intervals() -> None:
    drawn = [
        i for i in program.trace("euler_ancestral", SIGMAS).instructions if isinstance(i, Noise)
    ]
    assert [(n.sigma, n.sigma_next) for n in drawn] == list(pairwise(SIGMAS[:5]))


def test_the_same_trace_is_equal_and_hashable() -> None:
    first, second = (program.trace("DPM++ 2M", SIGMAS) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first.sampler == "dpmpp_2m"


def test_slots_do_not_grow_with_steps() -> None:
    for name in STATIC:
        counts = {
            program.trace(name, (*np.geomspace(14, 0.03, n), 0.0)).slots for n in (12, 20, 200)
        }
        assert len(counts) == 1, name
    velocities = {"momentum": 0.5}  # each is all D so far, and yet one latent
    long = program.trace(
        "clyb_4m_sde_momentumized", (*np.geomspace(14, 0.03, 200), 0.0), **velocities
    )
    assert long.slots == 8


def test_errors_are_those_of_the_sampler() -> None:
    with pytest.raises(UnknownSampler):
        program.trace("nothing", SIGMAS)
    with pytest.raises(InvalidRequest, match="no parameter"):
        program.trace("dpmpp_2m", SIGMAS, eta=1.0)
    with pytest.raises(ValueError, match="descend"):
        program.trace("euler", (1.0, 2.0))


def squares(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
    return x * model(x, sigmas[0])


def shifts(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
    return model(x, sigmas[0]) + 1.0


@pytest.mark.parametrize("function", [squares, shifts])
def test_what_is_not_linear_in_latents_has_no_program(
    function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_SAMPLERS", {})
    monkeypatch.setattr(registry, "_ALIASES", {})
    registry.sampler("crooked", paper="none")(function)
    with pytest.raises(TypeError, match="unsupported operand"):
        program.trace("crooked", SIGMAS)


@pytest.mark.parametrize("name", ["dpm_adaptive", "supreme"])
def test_what_depends_on_data_has_no_program(name: str) -> None:
    with pytest.raises(ValueError, match="depends on data"):
        program.trace(name, SIGMAS)


def test_the_same_sum_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
        first = model(x + 2 * x, sigmas[0])
        return model(3 * x, sigmas[1]) - first

    monkeypatch.setattr(registry, "_SAMPLERS", {})
    monkeypatch.setattr(registry, "_ALIASES", {})
    registry.sampler("twice", paper="none")(twice)
    kinds = [type(i) for i in program.trace("twice", SIGMAS).instructions]
    assert kinds == [Combine, Eval, Eval, Combine]


def test_the_noise_is_of_the_kind_the_sampler_asks_for() -> None:
    assert program.trace("dpmpp_sde", SIGMAS).noise == "brownian"
    assert program.trace("dpmpp_sde", SIGMAS, noise_kind="gaussian").noise == "gaussian"
    assert program.trace("lcm_custom_noise", SIGMAS, noise_kind="perlin").noise == "perlin"


@pytest.mark.parametrize("name", STATIC)
def test_a_program_survives_json(name: str) -> None:
    traced = program.trace(name, SIGMAS)
    assert Program.from_json(traced.to_json()) == traced


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"slots": 1}, "outside"),
        ({"slots": 0}, "slots"),
        ({"slots": 10**9}, "slots"),
        ({"slots": "2"}, "whole number"),
        ({"slots": float("inf")}, "whole number"),
        ({"result": 0.7}, "whole number"),
        ({"noise": "nope"}, "use gaussian"),
        ({"version": 1}, "version 1"),
        ({"sigmas": [10**400]}, "not a program"),
        ({"result": 5}, "result"),
        ({"instructions": [["eval", 0, 0, 1.0, False]]}, "into itself"),
        ({"instructions": [["combine", 0, [[1.0, 1]]]]}, "before"),
        ({"instructions": [["combine", 0, []]]}, "combines nothing"),
        ({"instructions": [["combine", 0, [["1", 0]]]]}, "finite number"),
        ({"instructions": [["eval", True, 0, 1.0, False]]}, "outside"),
        ({"instructions": [["eval", 1, 0]]}, "not a program"),
        ({"instructions": [["jump", 0]]}, "jump"),
        ({"instructions": 3}, "not a program"),
        ({"sigmas": [float("nan")]}, "finite"),
        ({"sampler": ...}, "sampler"),
    ],
)
def test_a_program_that_cannot_run_is_refused(change: dict[str, Any], word: str) -> None:
    record = json.loads(program.trace("euler", SIGMAS).to_json()) | change
    record = {name: value for name, value in record.items() if value is not ...}
    with pytest.raises(InvalidProgram, match=word):
        Program.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "7", "[" * 100_000])
def test_text_that_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(InvalidProgram, match="to_json"):
        Program.from_json(text)


def test_a_program_prints_what_it_does() -> None:
    text = str(program.trace("dpmpp_2m", (14.0, 3.0, 1.0, 0.0)))
    assert text.splitlines() == [
        "x1 = D(x0, σ 14)",
        "x0 = 0.214286·x0 + 0.785714·x1",
        "x2 = D(x0, σ 3)",
        "x1 = 0.333333·x0 + 0.904393·x2 − 0.237726·x1",
        "x2 = D(x1, σ 1)",
        "result x2",
    ]
