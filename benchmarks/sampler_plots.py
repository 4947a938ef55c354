"""The sampler benchmark in pictures: PNG files as bytes, None where there is nothing to show."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from .figures import decimal, empty, png
from .sampler_results import Combination, Record, pareto_front

MARKERS = "osD^vP"
LINES = ("-", "--", "-.", ":")
TILE = 96  # pixels, one picture of the grid
FONT = 13  # pixels
DISTANCE = "RMS distance to the converged picture / (1/255)"


def quality(records: Sequence[Record]) -> bytes | None:
    """What a picture is worth against what it takes: a point each combination, the Pareto front
    through those that none beats. One panel for prompt accuracy, one for the distance to the
    converged picture, each where it was measured."""
    accurate = [r for r in records if r.accuracy is not None]
    near = [r for r in records if r.distance]  # a log axis has no place for 0
    panels = bool(accurate) + bool(near)
    if not panels:
        return None
    figure = empty(8.5 * panels, 6)
    if accurate:
        axes = _axes(figure, (1, panels, 1), "Prompt accuracy against time")
        _scatter(axes, accurate, [100 * (r.accuracy or 0.0) for r in accurate], rising=True)
        axes.set_ylabel("prompt accuracy / %")
    if near:
        axes = _axes(figure, (1, panels, panels), "Distance to the converged picture against time")
        _scatter(axes, near, [r.distance or 0.0 for r in near], rising=False)
        axes.set_yscale("log")
        decimal(axes.yaxis)
        axes.set_ylabel(DISTANCE)
    return png(figure)


def _scatter(axes: Axes, records: Sequence[Record], values: list[float], *, rising: bool) -> None:
    """Points coloured by steps, and a line along those that none beats, numbered for the legend;
    `rising`: more is better."""
    seconds = [record.median_seconds for record in records]
    for number, steps in enumerate(sorted({r.combination.steps for r in records})):
        chosen = [k for k, record in enumerate(records) if record.combination.steps == steps]
        x, y = [seconds[k] for k in chosen], [values[k] for k in chosen]
        axes.plot(x, y, MARKERS[number % len(MARKERS)], alpha=0.6, label=f"{steps} steps")
    worth = [value if rising else -value for value in values]
    front = pareto_front(list(zip(seconds, worth, strict=True)))
    x, y = [seconds[k] for k in front], [values[k] for k in front]
    axes.plot(x, y, "k-", linewidth=1, label="Pareto front")
    for number, k in enumerate(front, 1):
        place = (seconds[k], values[k])
        axes.annotate(str(number), place, (4, 4), textcoords="offset points", fontsize=8)
        axes.plot([], [], " ", label=f"{number}  {records[k].combination}")
    axes.set_xscale("log")
    decimal(axes.xaxis)
    axes.set_xlabel("median seconds for one picture")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def distance(records: Sequence[Record]) -> bytes | None:
    """How each ODE sampler converges: distance to the converged picture over evaluations, both
    logarithmic. One schedule, the first measured: a line each sampler."""
    converging = [r for r in records if r.distance]  # a log axis has no place for 0
    if not converging:
        return None
    schedule = converging[0].combination.schedule
    shown = [r for r in converging if r.combination.schedule == schedule]
    shown.sort(key=lambda r: (r.combination.sampler, r.combination.steps))
    figure = empty(9, 6)
    axes = _axes(figure, (1, 1, 1), f"Convergence on the {schedule} schedule")
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    lines = groupby(shown, key=lambda r: r.combination.sampler)
    for number, (sampler, group) in enumerate(lines):
        found = list(group)
        axes.plot(
            [record.evaluations for record in found],
            [record.distance or 0.0 for record in found],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number % len(LINES)],  # methods that coincide stay visible
            color=colours[number % len(colours)],
            markersize=4,
            label=sampler,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    decimal(axes.xaxis)
    decimal(axes.yaxis)
    axes.set_xlabel("evaluations of the network")
    axes.set_ylabel(DISTANCE)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png(figure)


def grid(pictures: Mapping[Combination, Image.Image]) -> bytes | None:
    """The pictures of one prompt on the first schedule: a row each sampler, a column each number of
    steps."""
    if not pictures:
        return None
    schedule = next(iter(pictures)).schedule
    shown = {c: image for c, image in pictures.items() if c.schedule == schedule}
    rows, columns = sorted({c.sampler for c in shown}), sorted({c.steps for c in shown})
    font = ImageFont.load_default(FONT)
    left = int(max(font.getlength(name) for name in rows)) + 12
    top = FONT + 10
    size = (left + len(columns) * (TILE + 2), top + len(rows) * (TILE + 2))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, steps in enumerate(columns):
        centre = left + column * (TILE + 2) + TILE // 2
        pen.text((centre, top // 2), f"{steps} steps", "black", font, anchor="mm")
    for row, sampler in enumerate(rows):
        middle = top + row * (TILE + 2) + TILE // 2
        pen.text((left - 6, middle), sampler, "black", font, anchor="rm")
    for combination, image in shown.items():
        row, column = rows.index(combination.sampler), columns.index(combination.steps)
        tile = image.resize((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left + column * (TILE + 2), top + row * (TILE + 2)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _axes(figure: Figure, place: tuple[int, int, int], title: str) -> Axes:
    axes = figure.add_subplot(*place)
    axes.set_title(title)
    axes.grid(alpha=0.3, which="both")
    return axes
