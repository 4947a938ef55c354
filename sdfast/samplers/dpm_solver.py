"""DPM-Solver: exponential integrators of ε in λ = −ln σ, of orders 1 to 3 in single steps."""

from __future__ import annotations

import math
from typing import Any

from ..errors import EngineError
from ..ranges import Allowed, Range
from .ancestral import ETA, ancestral_step
from .euler import derivative
from .registry import no_noise, sampler


def second_order(model: Any, x: Any, eps: Any, s: float, t: float, r1: float) -> tuple[Any, Any]:
    """DPM-Solver-2 from s to t with its middle at r1 of the way in λ; (x at t, ε at the middle)."""
    middle = s * (t / s) ** r1
    between = x + (middle - s) * eps
    eps_1 = derivative(between, model(between, middle), middle)
    return x + (t - s) * eps + (t - s) / (2 * r1) * (eps_1 - eps), eps_1


def third_order(model: Any, x: Any, eps: Any, eps_1: Any, s: float, t: float) -> Any:
    """DPM-Solver-3 from s to t; eps_1 is ε at a third of the way, as second_order gives it."""
    h, r1, r2 = math.log(s / t), 1 / 3, 2 / 3
    later = s * (t / s) ** r2
    bend = later * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1)
    between = x + (later - s) * eps - bend * (eps_1 - eps)
    eps_2 = derivative(between, model(between, later), later)
    return x + (t - s) * eps - t / r2 * (math.expm1(h) / h - 1) * (eps_2 - eps)


def _step(model: Any, x: Any, s: float, t: float, order: int) -> Any:
    eps = derivative(x, model(x, s), s)
    if order == 1:
        return x + (t - s) * eps
    if order == 2:
        return second_order(model, x, eps, s, t, 0.5)[0]
    _, eps_1 = second_order(model, x, eps, s, t, 1 / 3)
    return third_order(model, x, eps, eps_1, s, t)


def _range(sigmas: Any) -> tuple[float, float]:
    """The first sigma and the last above 0: all of a schedule that these samplers look at."""
    return sigmas[0], sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]


def _lowered(s: float, t: float, sigma_min: float, eta: float) -> tuple[float, float]:
    """(t', deviation of the noise): where a step to t with that eta ends, not below sigma_min."""
    if eta == 0:
        return t, 0.0
    lower = max(sigma_min, ancestral_step(s, t, eta)[0])
    # The last step ends at sigma_min itself: nothing of a difference of equals is left to draw.
    up = 0.0 if t - lower <= 1e-9 * t else math.sqrt(t * t - lower * lower)
    return lower, up


@sampler(
    "dpm_fast",
    aliases=("DPM fast", "k_dpm_fast", "sample_dpm_fast"),
    paper="arXiv:2206.00927",
    ranges=ETA,
)
def dpm_fast(
    model: Any, x: Any, sigmas: Any, noise: Any, eta: float = 0.0, s_noise: float = 1.0
) -> Any:
    """DPM-Solver-fast: third-order steps, as many as the evaluations allow.

    Lu et al. 2022, appendix D.5: exactly N evaluations between the first and the last positive
    sigma, whatever lies between; a draw a step where eta > 0. It ends at that sigma, not at 0.
    Choose it for 8 to 12 evaluations.
    """
    sigma_max, sigma_min = _range(sigmas)
    budget = len(sigmas) - 1
    if sigma_max == sigma_min:
        return model(x, sigma_max)
    steps = budget // 3 + 1
    last = [3, budget % 3] if budget % 3 else [2, 1]
    orders = ([3] * steps + last)[-steps:]
    ratio = sigma_min / sigma_max
    knots = [sigma_max * ratio ** (j / steps) for j in range(steps)] + [sigma_min]
    for j, order in enumerate(orders):
        s, t = knots[j], knots[j + 1]
        lower, up = _lowered(s, t, sigma_min, eta)
        x = _step(model, x, s, lower, order)
        if eta > 0:
            x = x + s_noise * up * noise(s, t)
    return x


def _error(low: Any, high: Any, previous: Any, atol: float, rtol: float) -> float:
    """‖(low − high) / max(atol, rtol · max(|low|, |previous|))‖ / √count, over the whole array."""

    def larger(a: Any, b: Any) -> Any:  # max of two of anything that has abs
        return (a + b + abs(a - b)) / 2

    allowed = larger(rtol * larger(abs(low), abs(previous)), atol + 0 * low)
    squares = ((low - high) / allowed) ** 2
    return math.sqrt(float(squares.mean()))


ATTEMPTS = 1000  # a picture takes about 10

CONTROL: dict[str, Allowed] = {
    "order": Range(2, 3, whole=True),
    "rtol": Range(1e-6, 1),
    "atol": Range(1e-6, 1),
    "h_init": Range(1e-3, 10),
    "pcoeff": Range(0, 10),
    "icoeff": Range(0, 10),
    "dcoeff": Range(0, 10),
    "accept_safety": Range(0.01, 1),
    **ETA,
}


@sampler(
    "dpm_adaptive",
    aliases=("DPM adaptive", "k_dpm_ad", "k_dpm_adaptive", "sample_dpm_adaptive"),
    paper="arXiv:2206.00927",
    static=False,
    ranges=CONTROL,
    evaluations=lambda steps: None if steps > 1 else 1,
)
def dpm_adaptive(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Any:
    """DPM-Solver-12 or -23 with its own step size; as many evaluations as the picture needs.

    Lu et al. 2022, appendix C, with a PID controller: `order` evaluations an attempt between the
    first and the last positive sigma, one draw an accepted step; the error is that of all of x, so
    a batch shares its steps. Choose it where accuracy matters more than a known time.
    """
    sigma_max, sigma_min = _range(sigmas)
    if sigma_max == sigma_min:
        return model(x, sigma_max)
    divisor = order if eta == 0 else 1.5
    gains = (pcoeff + icoeff + dcoeff, -(pcoeff + 2 * dcoeff), dcoeff)
    errors: list[float] = []
    lam, lam_end, h, previous = -math.log(sigma_max), -math.log(sigma_min), h_init, x
    for _ in range(ATTEMPTS):
        if lam >= lam_end - 1e-5:
            return x
        lam_next = min(lam_end, lam + h)
        s, t = math.exp(-lam), math.exp(-lam_next)
        lower, up = _lowered(s, t, sigma_min, eta)
        eps = derivative(x, model(x, s), s)
        if order == 2:
            low = x + (lower - s) * eps
            high = second_order(model, x, eps, s, lower, 0.5)[0]
        else:
            low, eps_1 = second_order(model, x, eps, s, lower, 1 / 3)
            high = third_order(model, x, eps, eps_1, s, lower)
        error = _error(low, high, previous, atol, rtol)
        if not math.isfinite(error):
            raise EngineError(f"at noise level {s:g} the network's answer is not a finite number")
        inverse = 1 / (error + 1e-8)
        errors = [inverse, *(errors[1:] or [inverse, inverse])]
        factor = math.prod(e ** (p / divisor) for e, p in zip(errors, gains, strict=True))
        factor = 1 + math.atan(factor - 1)
        if factor >= accept_safety:
            errors = [errors[0], errors[0], errors[1]]
            previous, x, lam = low, high, lam_next
            if eta > 0 or noise is not no_noise:  # k-diffusion draws at eta 0 too, to no end
                x = x + s_noise * up * noise(s, t)
        h *= factor
    raise EngineError(
        f"dpm_adaptive is not at its end after {ATTEMPTS} attempts: raise rtol or h_init, or "
        "choose another sampler"
    )
