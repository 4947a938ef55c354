"""Supreme, of ComfyUI-Extra-Samplers: solvers to choose from, enhancement, modulated noise.

The only sampler that needs arrays of NumPy: see supreme_filters for what it does to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..ranges import Allowed, Choice, Range
from .ancestral import ancestral_step
from .dpm_solver import second_order, third_order
from .dpmpp import phi1, phi2
from .registry import sampler


@dataclass(frozen=True)
class _Stage:
    """One substep from z at level s: to `down` by the ancestral split for the level t."""

    denoise: Callable[[Any, float], Any]
    z: Any
    denoised: Any
    s: float
    t: float
    down: float
    down_reversed: float
    before: tuple[Any, Any] | None  # x and D when the last step ended

    @property
    def slope(self) -> Any:
        return (self.z - self.denoised) / self.s

    @property
    def step(self) -> float:
        return self.down - self.s

    @property
    def back(self) -> float:
        """The weight of a reversible method's correction, δ_r²."""
        return (self.down_reversed - self.s) ** 2

    def slope_at(self, z: Any, sigma: float) -> Any:
        return (z - self.denoise(z, sigma)) / sigma

    def k(self, y: Any, c: float) -> Any:
        """δ · slope of z + y at s + cδ: a Runge–Kutta stage."""
        return self.slope_at(self.z + y, self.s + c * self.step) * self.step


def _euler(g: _Stage) -> Any:
    return g.z + g.step * g.slope


def _dpm_2s(g: _Stage) -> Any:
    return second_order(g.denoise, g.z, g.slope, g.s, g.down, 0.5)[0]


def _dpm_3s(g: _Stage) -> Any:
    _, eps_1 = second_order(g.denoise, g.z, g.slope, g.s, g.down, 1 / 3)
    return third_order(g.denoise, g.z, g.slope, eps_1, g.s, g.down)


def _rk4(g: _Stage) -> Any:
    k1 = g.slope * g.step
    k2 = g.k(k1 / 2, 1 / 2)
    k3 = g.k(k2 / 2, 1 / 2)
    k4 = g.k(k3, 1.0)
    return g.z + (k1 + 2 * k2 + 2 * k3 + k4) / 6


def _rkf45(g: _Stage) -> Any:
    k1 = g.slope * g.step
    k2 = g.k(k1 / 4, 1 / 4)
    k3 = g.k(3 * k1 / 32 + 9 * k2 / 32, 3 / 8)
    k4 = g.k((1932 * k1 - 7200 * k2 + 7296 * k3) / 2197, 12 / 13)
    k5 = g.k(439 * k1 / 216 - 8 * k2 + 3680 * k3 / 513 - 845 * k4 / 4104, 1.0)
    return g.z + 25 * k1 / 216 + 1408 * k3 / 2565 + 2197 * k4 / 4104 - k5 / 5


def _bogacki_shampine(g: _Stage, back: float = 0.0) -> Any:
    k1 = g.slope * g.step
    k2 = g.k(k1 / 2, 1 / 2)
    k3 = g.k(3 * k1 / 4 + k2 / 4, 3 / 4)  # the textbook's is 3/4 k2; so the sampler is known
    return g.z + 2 * k1 / 9 + k2 / 3 + 4 * k3 / 9 - back * (k3 - k2) / 6


def _reversible_bogacki_shampine(g: _Stage) -> Any:
    return _bogacki_shampine(g, g.back)


def _trapezoidal(g: _Stage) -> Any:
    ahead = g.z + (g.t - g.s) * g.slope
    return g.z + g.step * (g.slope + g.slope_at(ahead, g.t)) / 2


def _reversible_heun(g: _Stage) -> Any:
    second = g.slope_at(g.z + g.step * g.slope, g.down)
    return g.z + g.step * (g.slope + second) / 2 - g.back * (second - g.slope) / 4


def _reversible_heun_1s(g: _Stage) -> Any:
    x, denoised = g.before or (g.z, g.denoise(g.z, g.s))
    first = (x - denoised) / g.s
    second = (x + g.step * first - g.denoised) / g.down
    return g.z + g.step * (first + second) / 2 - g.back * (second - first) / 4


def _res(g: _Stage) -> Any:
    goal = g.down if g.down < g.t else g.t
    h = math.log(g.s / goal)
    middle = math.exp(-h / 2) * g.z + h / 2 * phi1(h / 2) * g.denoised
    second = g.denoise(middle, g.s * math.exp(-h / 2))
    b2 = 2 * phi2(h)
    return math.exp(-h) * g.z + h * ((phi1(h) - b2) * g.denoised + b2 * second)


_RK_WEIGHTS = {
    1: (1.0,),
    2: (1 / 2, 1 / 2),
    3: (1 / 6, 2 / 3, 1 / 6),
    4: (1 / 8, 3 / 8, 3 / 8, 1 / 8),
}


def _order_for(g: _Stage, sigma_before: float) -> int:
    """The order that the last step's error asks for: a small one gets a high order."""
    assert g.before is not None
    x, denoised = g.before
    slope = (x - denoised) / sigma_before
    predicted = (x + slope * (g.s - sigma_before) - g.denoised) / g.s
    axes = (1, 2, 3)
    squares = [((a * a).sum(axes)) for a in (predicted - slope, slope)]
    error = math.sqrt(float((squares[0] / squares[1]).max()))
    return next((o for o, top in ((6, 0.01), (4, 0.0375), (3, 0.075), (2, 0.15)) if error < top), 1)


def _adaptive_rk(g: _Stage, sigma_before: float) -> Any:
    weights = _RK_WEIGHTS[min(_order_for(g, sigma_before), 4)]
    ks = [g.slope * g.step]
    for j in range(1, len(weights)):
        mixed = sum(w * k for w, k in zip(weights, ks, strict=False))
        ks.append(g.k(mixed, sum(weights[:j])))
    return g.z + sum(w * k for w, k in zip(weights, ks, strict=True))


_DYNAMIC = {1: _euler, 2: _trapezoidal, 3: _bogacki_shampine, 4: _rk4, 6: _rkf45}

_METHODS: dict[str, Callable[[_Stage], Any]] = {
    "euler": _euler,
    "dpm_1s": _euler,
    "dpm_2s": _dpm_2s,
    "dpm_3s": _dpm_3s,
    "rk4": _rk4,
    "rkf45": _rkf45,
    "bogacki_shampine": _bogacki_shampine,
    "reversible_bogacki_shampine": _reversible_bogacki_shampine,
    "trapezoidal": _trapezoidal,
    "reversible_heun": _reversible_heun,
    "reversible_heun_1s": _reversible_heun_1s,
    "RES": _res,
}
_ORDERS = {"euler": 1, "dpm_1s": 1, "reversible_heun_1s": 1, "dpm_3s": 3, "bogacki_shampine": 3}
_ORDERS |= {"rk4": 4, "rkf45": 6}


def _advance(g: _Stage, method: str, sigma_before: float) -> Any:
    if method == "dynamic":
        return _DYNAMIC[_order_for(g, sigma_before)](g)
    if method == "adaptive_rk":
        return _adaptive_rk(g, sigma_before)
    return _METHODS[method](g)


def _enhancing(
    model: Any, share: float, edge: float, centre: float, normal: float, perphist: float
) -> Callable[[Any, float, float, float], Any]:
    """enhanced(z, level, s, t) → D at that level, within the step s → t, enhanced by its share of
    each strength; perphist looks back at the call before."""
    from . import supreme_filters as filters

    last: list[Any] = []

    def enhanced(z: Any, level: float, s: float, t: float) -> Any:
        denoised = model(z, level)
        if edge:
            denoised = filters.sharpened(denoised, z, (s - t) * edge * share)
        if centre:
            denoised = filters.centred(denoised, centre * share * math.sqrt(s))
        if normal:
            denoised = filters.normalized(denoised, normal * share * math.sqrt(s))
        if perphist and last:
            denoised = filters.away_from(denoised, last[0], z, perphist * share)
        last[:] = [denoised]
        return denoised

    return enhanced


_STRENGTH = Range(-10, 10)
_STEPS = Choice((*_METHODS, "dynamic", "adaptive_rk"))


RANGES: dict[str, Allowed] = {
    "eta": Range(0, 10),
    "s_noise": Range(0, 10),
    "step_method": _STEPS,
    "substep_method": Choice(tuple(_METHODS)),
    "substeps": Range(1, 16, whole=True),
    "centralization": _STRENGTH,
    "normalization": _STRENGTH,
    "edge_enhancement": _STRENGTH,
    "perphist": _STRENGTH,
    "noise_modulation": Choice(("none", "intensity", "frequency", "spectral_signum")),
    "modulation_strength": _STRENGTH,
    "modulation_dims": Range(1, 3, whole=True),
    "reversible_eta": Range(0, 10),
}


@sampler(
    "supreme",
    aliases=("SamplerSupreme",),
    paper="ComfyUI-Extra-Samplers, no paper",
    static=False,
    stochastic=True,
    ranges=RANGES,
    evaluations=lambda steps: 2 * steps + 4 * (steps > 1),
)
def supreme(
    model: Any,
    x: Any,
    sigmas: Any,
    noise: Any,
    eta: float = 1.0,
    s_noise: float = 1.0,
    step_method: str = "euler",
    substep_method: str = "euler",
    substeps: int = 2,
    centralization: float = 0.05,
    normalization: float = 0.05,
    edge_enhancement: float = 0.25,
    perphist: float = 0.5,
    noise_modulation: str = "intensity",
    modulation_strength: float = 2.0,
    modulation_dims: int = 3,
    reversible_eta: float = 1.0,
) -> Any:
    """Averages substeps of any solver, enhances every denoised, modulates its noise.

    Takes arrays of NumPy. Of the order of its step_method, less what enhancement bends; at its
    defaults two evaluations a step and four more in the first, which
    is Runge–Kutta–Fehlberg's; one draw a step but the last. Choose it to experiment.
    """
    parts = _ORDERS.get(step_method, 2) + _ORDERS.get(substep_method, 2) * (substeps - 1)
    strengths = (edge_enhancement, centralization, normalization, perphist)
    enhanced = _enhancing(model, 1 / parts, *strengths)
    modulated = _modulating(noise_modulation, modulation_strength, modulation_dims)
    before: tuple[Any, Any] | None = None
    for i, (s, t) in enumerate(pairwise(sigmas)):
        down, up = ancestral_step(s, t, eta)
        back = ancestral_step(s, t, reversible_eta)[0]

        def denoise(z: Any, level: float, s: float = s, t: float = t) -> Any:
            return enhanced(z, level, s, t)

        total = 0.0
        for k in range(substeps):
            method = substep_method if k > 0 else "rkf45" if before is None else step_method
            g = _Stage(denoise, x, denoise(x, s), s, t, down, back, before)
            # Nothing but the denoised itself lies at level 0.
            method = method if down > 0 else "euler"
            total = total + _advance(g, method, sigmas[i - 1]) / substeps
        x = total
        if t > 0:
            drawn = s_noise * up * noise(s, t)
            x = x + modulated(drawn, x) if s_noise * up > 0 else x
        before = (x, g.denoised)
    return x


def _modulating(kind: str, strength: float, dims: int) -> Callable[[Any, Any], Any]:
    """modulated(noise, x) → the noise of that kind."""
    from . import supreme_filters as filters

    if kind == "none":
        return lambda noise, x: noise
    modulation = filters.MODULATIONS[kind]
    return lambda noise, x: modulation(noise, x, strength, filters.DIMS[dims])
