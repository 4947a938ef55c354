"""What the pipeline benchmark and the peers' found, as Markdown and plots, generated from the
records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sdfast.store import write_atomically

from . import plots
from .measurements import Results, Spread
from .processes import PICTURES
from .series import BASE, exponent, series

GIB = 2**30
NONE = "–"

STAGES = ("text_encoder", "unet", "vae_decoder")
STARTS = {
    "import_seconds": "libraries imported, from the command on",
    "export_seconds": "its own form of the checkpoint made",
    "load_seconds": "loaded",
    "compile_seconds": "what the first picture takes longer than the next",
    "first_step_seconds": "first denoising step begins, from the command on",
    "first_request_seconds": "first picture there, from the command on",
}
JUDGED = {
    "request_seconds": "a picture",
    "step_seconds": "a denoising step",
    "text_encoder_seconds": "the text encoder",
    "vae_decoder_seconds": "the decoder",
    "first_step_seconds": "the second start",
    "peak_bytes": "peak memory",
}
HOW = (
    "Medians; in brackets the quartiles. First start: nothing was made, compiled or kept before. "
    "Second start: a new process that finds all that. A start counts from the command to where the "
    "first denoising step begins: the end of the first step less the median of the later ones."
)


def write(results: Results, out: Path) -> tuple[Path, ...]:
    """Writes report.md and the plots of all that the folder holds: the files written. Raises
    OutputError."""
    peers = results.benchmark == "peers"
    drawn = plots.peers(results) if peers else plots.scaling(results)
    name = "peers.png" if peers else "scaling.png"
    text = peers_report(results, _pictures(results, out)) if peers else pipeline_report(results)
    picture = f"\n![{results.benchmark}]({name})\n" if drawn else ""
    contents = {"report.md": (text + picture).encode(), name: drawn}
    written = {out / file: data for file, data in contents.items() if data is not None}
    for file, data in written.items():
        write_atomically(file, data)
    return tuple(written)


# --- the pipeline ---------------------------------------------------------------------------------


def pipeline_report(results: Results) -> str:
    """Markdown: stages, starts, and how cost grows with images, resolution and steps."""
    blocks = [*_head(results, "The pipeline")]
    if BASE in results.cases:
        blocks += _stages(results)
        blocks += _starts(results)
    blocks += _scaling(results, "Images a request", "count", "request_seconds")
    blocks += _scaling(results, "Resolution", "pixels", "step_seconds", "vae_decoder_seconds")
    blocks += _scaling(results, "Steps", "steps", "request_seconds")
    return "\n\n".join([*blocks, *_skipped(results)]) + "\n"


def _stages(results: Results) -> Iterator[str]:
    settings = results.settings(BASE)
    size = f"{settings['width']}×{settings['height']}"
    yield f"## One picture, {size}, {settings['steps']} steps, on {settings['backend']}"
    rows = []
    for name in (*(f"{stage}_seconds" for stage in STAGES), "step_seconds", "request_seconds"):
        if found := results.spread(BASE, name):
            numbers = (found.median, found.lower_quartile, found.upper_quartile)
            numbers = (*numbers, found.minimum, found.maximum)
            rows.append([_words(name), *map(_seconds, numbers), str(found.count)])
    head = ["stage", "median s", "lower quartile", "upper quartile", "minimum", "maximum", "values"]
    yield _table(head, rows)


def _starts(results: Results) -> Iterator[str]:
    yield "## From the command on"
    rows = []
    for name, words in STARTS.items():
        first = results.spread(BASE, name, first_start=True)
        second = results.spread(BASE, name)
        if first or second:
            rows.append([words, _cell(first), _cell(second)])
    peaks = (results.spread(BASE, "peak_bytes", first_start=first) for first in (True, False))
    yield _table(["seconds", "first start", "second start"], rows)
    first, second = map(_gib, peaks)
    yield f"Peak resident memory: {first} GiB in the first start, {second} in the second."


def _scaling(results: Results, title: str, variable: str, *shown: str) -> Iterator[str]:
    cases = series(results, variable, shown[0])
    if len(cases) < 2:
        return
    yield f"## {title}"
    rows = []
    for case, value, _ in cases:
        settings = results.settings(case)
        size = f"{settings['width']}×{settings['height']}"
        row = [size if variable == "pixels" else f"{value:g}"]
        row += [_cell(results.spread(case, quantity)) for quantity in shown]
        if variable == "count" and (request := results.spread(case, "request_seconds")):
            row.append(f"{value / request.median:.3g}")
        rows.append([*row, _gib(results.spread(case, "peak_bytes"))])
    head = [{"count": "images", "steps": "steps", "pixels": "pixels"}[variable]]
    head += [f"{_words(quantity)} s" for quantity in shown]
    head += ["images/s"] if variable == "count" else []
    yield _table([*head, "peak GiB"], rows)
    grown = [
        f"{_words(quantity)} ~ {variable}^{power:.2f}"
        for quantity in shown
        if (power := exponent(results, variable, quantity)) is not None
    ]
    yield f"Fitted by least squares of the logarithms: {'; '.join(grown)}."


# --- the peers ------------------------------------------------------------------------------------


def peers_report(results: Results, apart: dict[str, float]) -> str:
    """Markdown: a row each peer, starts and memory, and where sdfast loses.

    apart: how far each peer's last picture is from that of diffusers: RMS, levels of 1/255
    """
    cases, c = results.cases, results.conditions
    blocks = [*_head(results, "sdfast and its peers")]
    blocks.append(
        f"## One picture, {c['width']}×{c['height']}, {c['steps']} steps of DPM++ 2M (Karras), "
        f"guidance {c['guidance']:g}"
    )
    shown = ("request_seconds", "step_seconds", "text_encoder_seconds", "vae_decoder_seconds")
    rows = [
        [
            case,
            *(_cell(results.spread(case, name)) for name in shown),
            _ratio(results, case, "sdfast"),
            _ratio(results, case, "diffusers"),
            _number(apart.get(case), "{:.2f}"),
        ]
        for case in cases
    ]
    head = ["peer", *(f"{_words(name)} s" for name in shown)]
    blocks.append(_table([*head, "÷ sdfast", "÷ diffusers", "picture apart"], rows))
    blocks.append(
        "÷: the ratio of the medians of a whole picture. Apart: from diffusers' picture of the "
        "same prompt and seed, RMS in levels of 1/255."
    )
    blocks.append("## Starts and memory")
    starts = (
        ("export_seconds", True),
        ("compile_seconds", True),
        ("first_step_seconds", True),
        ("first_step_seconds", False),
    )
    rows = [
        [
            case,
            *(_cell(results.spread(case, name, first_start=first)) for name, first in starts),
            _gib(results.spread(case, "peak_bytes")),
        ]
        for case in cases
    ]
    head = ["export s", "compile s", "first start s", "second start s", "peak GiB"]
    blocks.append(_table(["peer", *head], rows))
    blocks.append("## Where sdfast loses")
    blocks.append("\n".join(lost(results)) or "Nowhere in these tables.")
    blocks += _skipped(results)
    blocks.append("## Versions")
    for record in {r.case: r for r in results.records if not r.skipped}.values():
        versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
        chosen = [f"{k} {v}" for k, v in record.settings.items() if k != "options"]
        blocks.append(f"- {record.case}: {', '.join([versions, *chosen])}")
    return "\n\n".join(blocks) + "\n"


def lost(results: Results) -> Iterator[str]:
    """A line for each quantity and peer (not a variant of sdfast) that needs less than sdfast."""
    for name, words in JUDGED.items():
        own = results.spread("sdfast", name)
        for case in results.cases:
            other = None if case.startswith("sdfast") else results.spread(case, name)
            if own and other and other.median < own.median:
                share = other.median / own.median
                yield f"- {words}: {case} needs {share:.2f} of what sdfast needs"


def _ratio(results: Results, case: str, to: str) -> str:
    ours, theirs = (results.spread(name, "request_seconds") for name in (case, to))
    return f"{ours.median / theirs.median:.2f}" if ours and theirs else NONE


def _pictures(results: Results, out: Path) -> dict[str, float]:
    """How far the peers' pictures are from that of diffusers, where both are there."""
    pictures = {}
    for case in results.cases:
        file = out / PICTURES / f"{case}.png"
        if file.is_file():
            with Image.open(file) as image:
                pictures[case] = np.asarray(image.convert("RGB"), np.float64)
    if "diffusers" not in pictures:
        return {}
    theirs = pictures["diffusers"]
    return {
        case: float(np.sqrt(np.mean((picture - theirs) ** 2)))
        for case, picture in pictures.items()
        if picture.shape == theirs.shape
    }


# --- parts of both --------------------------------------------------------------------------------


def _head(results: Results, title: str) -> Iterator[str]:
    c = results.conditions
    yield f"# {title}: bundle {c['bundle']}"
    versions = ", ".join(f"{name} {version}" for name, version in c["versions"].items())
    yield f"On {c['machine']}; {versions}; {c['runs']} timed requests a process. {HOW}"
    yield "\n".join(f"- {command}" for command in results.commands)


def _skipped(results: Results) -> Iterator[str]:
    """Why there is nothing of some."""
    reasons = dict.fromkeys(f"- {r.case}: {r.skipped}" for r in results.records if r.skipped)
    if reasons:
        yield "## Skipped"
        yield "\n".join(reasons)


def _words(quantity: str) -> str:
    return quantity.removesuffix("_seconds").replace("_", " ")


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def _cell(found: Spread | None) -> str:
    if found is None:
        return NONE
    if found.count < 2:
        return _seconds(found.median)
    low, high = _seconds(found.lower_quartile), _seconds(found.upper_quartile)
    return f"{_seconds(found.median)} ({low}–{high})"


def _gib(found: Spread | None) -> str:
    return _number(found and found.median / GIB, "{:.2f}")


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line: Callable[[Sequence[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(map(line, [head, rule, *rows]))
