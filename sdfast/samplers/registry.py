"""What a sampler is to the rest of the program, and where it is found by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import InvalidRequest, UnknownSampler, nearest
from ..ranges import Allowed, check

Model = Callable[[Any, float], Any]
Noise = Callable[[float, float], Any]


@dataclass(frozen=True)
class Sampler:
    """A sampling method.

    function: f(model, x, sigmas, noise, **parameters) → x at the last sigma
    aliases: what other programs call it
    family: "euler", "ancestral", "dpm": the file it lives in
    paper: where it was published, or whose it is if nowhere
    static: its control flow depends on sigmas and parameters alone, so it traces to a program
    stochastic: it draws noise at the default parameters
    noise: the kind it draws, unless its parameter noise_kind says another
    drops_penultimate: it draws better where the schedule leaves out its smallest sigma above 0
    parameters: name → default; ranges: name → allowed values
    coarse: defaults in place of those for networks that compute in less than float32
    evaluations: steps of a schedule that ends in 0 → calls of the network at default parameters;
        None where that depends on the picture
    """

    name: str
    function: Callable[..., Any]
    aliases: tuple[str, ...]
    family: str
    paper: str
    static: bool
    stochastic: bool
    noise: str
    drops_penultimate: bool
    parameters: Mapping[str, Any]
    ranges: Mapping[str, Allowed]
    coarse: Mapping[str, Any]
    evaluations: Callable[[int], int | None]

    @property
    def doc(self) -> str:
        """The first line of the function's docstring."""
        return inspect.getdoc(self.function).splitlines()[0]  # type: ignore[union-attr]

    def sample(
        self,
        model: Model,
        x: Any,
        sigmas: Sequence[float],
        noise: Noise | None = None,
        **parameters: Any,
    ) -> Any:
        """Runs the method from x at sigmas[0] to sigmas[-1].

        sigmas: descending noise levels, at least two, finite, ≥ 0, only the last may be 0
        Raises InvalidRequest for a parameter it does not have or that is out of range, and for
        other sigmas.
        """
        levels = tuple(float(sigma) for sigma in sigmas)
        check_sigmas(levels)
        self.check(parameters)
        return self.function(model, x, levels, noise or no_noise, **parameters)

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raises InvalidRequest unless the sampler has these parameters and takes these values."""
        check(f"sampler {self.name}", self.ranges, parameters)

    def noise_kind(self, parameters: Mapping[str, Any]) -> str:
        """The kind of noise that it draws with these parameters."""
        return str(parameters.get("noise_kind", self.noise))


_SAMPLERS: dict[str, Sampler] = {}
_ALIASES: dict[str, str] = {}


def sampler(
    name: str,
    *,
    aliases: tuple[str, ...] = (),
    paper: str,
    static: bool = True,
    stochastic: bool = False,
    noise: str = "gaussian",
    drops_penultimate: bool = False,
    ranges: Mapping[str, Allowed] | None = None,
    coarse: Mapping[str, Any] | None = None,
    evaluations: Callable[[int], int | None] = lambda steps: steps,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the function below it under a name and its aliases."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        arguments = list(inspect.signature(function).parameters.values())[4:]
        found = Sampler(
            name=name,
            function=function,
            aliases=aliases,
            family=function.__module__.rpartition(".")[2],
            paper=paper,
            static=static,
            stochastic=stochastic,
            noise=noise,
            drops_penultimate=drops_penultimate,
            parameters={a.name: a.default for a in arguments},
            ranges=ranges or {},
            coarse=coarse or {},
            evaluations=evaluations,
        )
        if set(found.parameters) != set(found.ranges):
            raise TypeError(f"sampler {name}: every parameter needs a range")
        _SAMPLERS[name] = found
        for word in (name, *aliases):
            if _ALIASES.setdefault(word.lower(), name) != name:
                raise TypeError(f"sampler {name}: {word!r} is {_ALIASES[word.lower()]} already")
        return function

    return register


def names() -> tuple[str, ...]:
    """The canonical names, in alphabetical order."""
    return tuple(sorted(_SAMPLERS))


def get(name: str) -> Sampler:
    """The sampler of that name or alias, in any case; a schedule at its end, as in A1111's older
    labels ("DPM++ 2M Karras"), is left out. Raises UnknownSampler with the nearest."""
    word = name.strip().lower()
    if (schedule := labelled_schedule(name)) is not None:
        word = word.removesuffix(schedule).strip()
    if word not in _ALIASES:
        raise UnknownSampler(
            f"sampler {name!r} is unknown{nearest(word, _ALIASES)}; known: {', '.join(names())}"
        )
    return _SAMPLERS[_ALIASES[word]]


def labelled_schedule(name: str) -> str | None:
    """The schedule that an older label of A1111 names after the sampler."""
    last = name.strip().lower().rpartition(" ")[2]
    return last if last in ("karras", "exponential") else None


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Raises InvalidRequest unless sigmas are two or more, finite, and descend to no less than
    0."""
    if len(sigmas) < 2:
        raise InvalidRequest("a run needs two sigmas or more: where it starts and where it ends")
    if not all(math.isfinite(sigma) and sigma >= 0 for sigma in sigmas):
        raise InvalidRequest("every sigma must be a finite number, 0 or above")
    if any(b >= a for a, b in pairwise(sigmas)):
        raise InvalidRequest("sigmas must descend strictly")


def no_noise(sigma: float, sigma_next: float) -> Any:
    raise ValueError("this sampler draws noise: pass noise(sigma, sigma_next)")
