"""Two results of one benchmark beside each other.

sdfast bench compare before.json after.json --fail-above 1.10
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdfast.errors import InvalidRequest, nearest

from .measurements import Results, Spread

ALL = "all"


@dataclass(frozen=True)
class Change:
    """A quantity of a case in both results."""

    case: str
    quantity: str
    before: Spread
    after: Spread

    @property
    def ratio(self) -> float:
        """Of the medians, after to before."""
        return self.after.median / self.before.median

    @property
    def range(self) -> tuple[float, float]:
        """Of the quartiles: the least and the largest ratio that they allow."""
        low = self.after.lower_quartile / self.before.upper_quartile
        return low, self.after.upper_quartile / self.before.lower_quartile


def changes(
    before: Results, after: Results, quantities: Sequence[str] = ("request_seconds",)
) -> tuple[Change, ...]:
    """What both measured of the quantities ("all" for every one), after the first start.

    Raises InvalidRequest when that is nothing.
    """
    names = tuple(dict.fromkeys(n for r in before.records for n in r.quantities))
    for name in quantities:
        if name not in (ALL, *names):
            raise InvalidRequest(
                f"quantity {name!r} was not measured{nearest(name, names)}; use {ALL} or one of "
                f"{', '.join(names)}"
            )
    found = []
    for case in before.cases:
        for name in names if ALL in quantities else quantities:
            was, now = before.spread(case, name), after.spread(case, name)
            if was and now and was.median > 0 < was.lower_quartile:
                found.append(Change(case, name, was, now))
    if not found:
        raise InvalidRequest(
            f"the two have no case in common: the first has {', '.join(before.cases) or 'none'}, "
            f"the second {', '.join(after.cases) or 'none'}"
        )
    return tuple(found)


def differences(before: Results, after: Results) -> tuple[str, ...]:
    """A line for each condition under which only one of the two was measured."""
    ours = {"benchmark": before.benchmark, **before.conditions}
    theirs = {"benchmark": after.benchmark, **after.conditions}
    return tuple(
        f"{name}: {ours.get(name)} → {theirs.get(name)}"
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    )


def slower(found: Sequence[Change], bound: float) -> tuple[Change, ...]:
    """Those whose ratio is above the bound."""
    return tuple(change for change in found if change.ratio > bound)
