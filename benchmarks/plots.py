"""The pipeline's and the peers' benchmark in pictures: PNG files as bytes, None where there is
nothing to show."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from .figures import decimal, empty, png
from .measurements import Results
from .series import exponent, series

PANELS = (
    ("pixels", "pixels of the picture", ("step_seconds", "vae_decoder_seconds")),
    ("count", "images a request", ("request_seconds",)),
    ("steps", "steps", ("request_seconds",)),
)


def scaling(results: Results) -> bytes | None:
    """Seconds over resolution, images and steps, both axes logarithmic; bars from the least to the
    largest value."""
    shown = [panel for panel in PANELS if len(series(results, panel[0], panel[2][0])) > 1]
    if not shown:
        return None
    figure = empty(5 * len(shown), 4.5)
    for place, (variable, label, quantities) in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), place)
        for quantity in quantities:
            _grown(axes, results, variable, quantity)
        axes.set_xscale("log")
        axes.set_yscale("log")
        values = [value for _, value, _ in series(results, variable, quantities[0])]
        squares = [f"{round(value**0.5)}²" for value in values]
        axes.set_xticks(values, squares if variable == "pixels" else [f"{v:g}" for v in values])
        axes.xaxis.set_minor_locator(NullLocator())
        decimal(axes.yaxis)
        axes.set_xlabel(label)
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return png(figure)


def _grown(axes: Axes, results: Results, variable: str, quantity: str) -> None:
    cases = series(results, variable, quantity)
    power = exponent(results, variable, quantity)
    x = [value for _, value, _ in cases]
    y = [found.median for _, _, found in cases]
    below = [found.median - found.minimum for _, _, found in cases]
    above = [found.maximum - found.median for _, _, found in cases]
    name = quantity.removesuffix("_seconds").replace("_", " ")
    label = name if power is None else f"{name} ~ {variable}^{power:.2f}"
    axes.errorbar(x, y, (below, above), marker="o", markersize=4, capsize=3, label=label)


def peers(results: Results) -> bytes | None:
    """A bar each peer: a picture, the second start, and peak memory."""
    cases = results.cases[::-1]  # the first on top
    if not cases:
        return None
    panels = (
        ("request_seconds", "one picture / s", 1.0),
        ("first_step_seconds", "second start to the first step / s", 1.0),
        ("peak_bytes", "peak resident memory / GiB", 2.0**30),
    )
    figure = empty(13, 1.5 + 0.4 * len(cases))
    for place, (quantity, label, unit) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        spreads = [results.spread(case, quantity) for case in cases]
        values = [found.median / unit if found else 0.0 for found in spreads]
        colours = ["tab:orange" if case.startswith("sdfast") else "tab:blue" for case in cases]
        bars = axes.barh(cases, values, color=colours)
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axes.set_xlabel(label)
        axes.margins(x=0.18)
        axes.tick_params(labelleft=place == 1)
    return png(figure)
