"""Step caching: which evaluations of a program run the whole network (DeepCache, arXiv:2312.00858).

What the inner layers of a U-Net bring to its outermost ones changes slowly from one evaluation to
the next. A shallow evaluation computes the outermost part alone (the network `unet_shallow`), with
what the last evaluation of the whole left.

A cache is an interval or a schedule: n has every n-th evaluation run the whole network, from the
first on, so that 1 is the program as it is; a tuple names those that do, counted from 0. AUTO is
the interval that suits the sampler.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count, pairwise

from .errors import InvalidRequest
from .program import Eval, Program
from .samplers import Sampler

Cache = int | tuple[int, ...]
AUTO = "auto"
LARGEST = 1000
# At 2 they lose 2 points and more: what they draw outweighs what an evaluation leaves.
_NONE = frozenset({"dpmpp_3m_sde", "euler_ancestral_dancing", "lcm", "lcm_custom_noise"})


def usual(sampler: Sampler) -> int:
    """The interval that AUTO is for a sampler: the longest, up to 3, that costs less than 2 points
    of prompt accuracy in 20 steps of the demo model (docs/benchmarks.md). Noise that is drawn
    between steps changes the features faster."""
    if sampler.name in _NONE:
        return 1
    return 2 if sampler.stochastic else 3


def checked(value: object) -> Cache:
    """The cache that a value is; a list may stand for a tuple. Raises InvalidRequest."""
    if isinstance(value, tuple | list):
        numbers = tuple(value)
        whole = all(type(number) is int for number in numbers)
        if whole and numbers[:1] == (0,) and all(a < b for a, b in pairwise(numbers)):
            return numbers
    elif type(value) is int and 1 <= value <= LARGEST:
        return value
    raise InvalidRequest(
        f"cache is {value!r}; it must be auto, an interval from 1 to {LARGEST}, or the evaluations "
        "that run the whole network, ascending from 0, as (0, 1, 3, 6, 10)"
    )


def cached(program: Program, cache: Cache) -> Program:
    """The program with all other evaluations shallow. Raises InvalidRequest for no cache, and for
    one that names an evaluation that the program does not have."""
    cache, evaluations = checked(cache), program.evaluations
    whole = frozenset(range(0, evaluations, cache) if isinstance(cache, int) else cache)
    if max(whole, default=0) >= max(evaluations, 1):
        raise InvalidRequest(
            f"cache names evaluation {max(whole)}; the run has {evaluations}, counted from 0: "
            "leave out what is beyond, or take more steps"
        )
    numbers = count()
    marked = tuple(
        replace(i, shallow=next(numbers) not in whole) if isinstance(i, Eval) else i
        for i in program.instructions
    )
    return replace(program, instructions=marked)
