"""How what the pipeline benchmark measured grows with one variable: "count" (images a request),
"steps", or "pixels" (of one picture)."""

from __future__ import annotations

from .measurements import Results, Spread, fitted_exponent

BASE = "base"  # the case from which each other differs in one variable
PREFIXES = {"count": "batch", "steps": "steps", "pixels": "size"}


def series(results: Results, variable: str, quantity: str) -> tuple[tuple[str, float, Spread], ...]:
    """(case, value of the variable, spread of the quantity) of the base case and of those that vary
    in it, ascending. variable: "count", "steps" or "pixels"."""
    prefix = PREFIXES[variable]
    found = []
    for case in results.cases:
        if case == BASE or case.startswith(prefix):
            settings = results.settings(case)
            pixels = settings["width"] * settings["height"]
            value = float(pixels if variable == "pixels" else settings[variable])
            if spread := results.spread(case, quantity):
                found.append((case, value, spread))
    return tuple(sorted(found, key=lambda entry: entry[1]))


def exponent(results: Results, variable: str, quantity: str) -> float | None:
    """Of the growth of a quantity's median with the variable."""
    points = ((value, found.median) for _, value, found in series(results, variable, quantity))
    return fitted_exponent(points)
