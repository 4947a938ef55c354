"""sdfast generate: from prompts to files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..errors import InvalidRequest, OutputError
from .options import OPENING, of_a_request, of_opening, origin_of

if TYPE_CHECKING:
    from PIL import Image

    from ..pipeline import Pipeline, Result
    from ..prompt_files import Row
    from ..provenance import Provenance
    from ..request import Request


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="A file with one prompt a line, or a .csv, .jsonl or .parquet: see `sdfast batch`.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Repeat the request that this picture of sdfast or A1111 carries; options beside it win.",
)
@click.option("--bundle", help="Name or folder of a bundle. [demo, or that of --from]")
@of_a_request
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    help="A file, or a folder for several pictures. [the current folder]",
)
@click.option("--format", "form", default=None, help="png, jpeg or webp. [by --out, else png]")
@of_opening
@click.option(
    "--preview",
    is_flag=False,
    flag_value=5,
    type=click.IntRange(1),
    metavar="[N]",
    help="Show in the terminal what it will be, every N evaluations. [bare: 5]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each picture.")
def generate(
    prompt: str | None,
    prompts: Path | None,
    source: Path | None,
    bundle: str | None,
    out: Path,
    form: str | None,
    preview: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw pictures from a PROMPT.

    \b
    sdfast generate "a small red circle on a blue background" --seed 0 --out circle.png
    sdfast generate "a green star" --count 4 --sampler euler_ancestral --out stars/
    sdfast generate --prompts prompts.txt --out pictures/
    sdfast generate --from circle.png --steps 30
    sdfast generate "a green star" --cache 3
    """
    from .. import images

    opening = {name: options.pop(name) for name in OPENING}
    given = {name: value for name, value in options.items() if value is not None}
    requests = _requests(prompt, prompts, source, given)
    if source is not None and bundle is None:
        bundle = images.read_request(source)[1] or None
    form = form or (out.suffix.lstrip(".").lower() if out.suffix else "png")
    if form not in images.FORMATS:
        raise InvalidRequest(f"format {form!r} is unknown; use one of {', '.join(images.FORMATS)}")
    several = len(requests) > 1 or requests[0].count > 1
    _check_out(out, several)
    from ..pipeline import load
    from ..provenance import Provenance, inputs, lora_folders

    pipe = load(bundle or "demo", **opening)
    for number, request in enumerate(requests):
        with _watched(as_json, number, len(requests), preview) as watching:
            result = pipe(request, **watching)
        made = Provenance(
            origin_of(pipe, opening),
            inputs(request, lora_folders(pipe.bundle, opening["lora_dir"])),
            len(result.images),
        )
        files = _write(result, pipe, out, form, made)
        _report(result, pipe, files, as_json)


def _requests(
    prompt: str | None, prompts: Path | None, source: Path | None, given: dict[str, Any]
) -> list[Request]:
    from ..images import read_request
    from ..prompt_files import Row, read
    from ..request import Request
    from ..request_text import overlaid

    if sum(part is not None for part in (prompt, prompts, source)) != 1:
        raise InvalidRequest(
            "say what to draw with one of PROMPT, --prompts FILE or --from PICTURE"
        )
    if source is not None:
        return [Request.from_dict(overlaid(read_request(source)[0].to_dict(), given))]
    rows = [Row("", {"prompt": prompt})] if prompts is None else read(prompts)
    return [_of_row(row, given) for row in rows]


def _of_row(row: Row, given: dict[str, Any]) -> Request:
    from ..request import Request
    from ..request_text import overlaid

    try:
        return Request.from_dict(overlaid(given, row.values))
    except InvalidRequest as error:
        raise InvalidRequest(f"{row.place}: {error}" if row.place else str(error)) from error


def _check_out(out: Path, several: bool) -> None:
    """Before anything is drawn: whether the pictures will have a place."""
    folder = out.parent if out.suffix else out
    if out.suffix and several:
        raise OutputError(f"--out {out} is one file, and there are several pictures: give a folder")
    if out.suffix and out.is_dir():
        raise OutputError(
            f"--out {out} is a folder: give it without a suffix, or name a file in it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder {folder} cannot be made ({error.strerror}): choose another --out"
        ) from error


def _write(result: Result, pipe: Pipeline, out: Path, form: str, made: Provenance) -> list[Path]:
    from dataclasses import replace

    from ..images import encode
    from ..store import write_atomically

    files = []
    for place, (image, seed) in enumerate(zip(result.images, result.seeds, strict=True)):
        single = result.request.alone(place)
        file = out if out.suffix else _free_name(out, result.request.prompt, seed, form)
        own = replace(made, place=place)
        write_atomically(file, encode(image, form, single, pipe.bundle.name, __version__, own))
        files.append(file)
    return files


def _free_name(folder: Path, prompt: str, seed: int, form: str) -> Path:
    """A name from the prompt and seed that no file in the folder has."""
    from ..images import stem

    name = f"{stem(prompt)}-{seed}"
    candidates = (f"{name}{f'-{k}' if k else ''}.{form}" for k in range(100_000))
    return next(folder / file for file in candidates if not (folder / file).exists())


def _report(result: Result, pipe: Pipeline, files: list[Path], as_json: bool) -> None:
    if as_json:
        for file, seed in zip(files, result.seeds, strict=True):
            line = {
                "file": str(file),
                "seed": seed,
                "backend": pipe.backend,
                "device": pipe.device,
                "precision": pipe.precision,
                "request": result.request.to_dict(),
                "seconds": dict(result.timings),
            }
            click.echo(json.dumps(line, ensure_ascii=False))
        return
    for file in files:
        click.echo(file)
    stages = " · ".join(f"{name} {seconds:.2f} s" for name, seconds in result.timings.items())
    click.echo(f"{stages} ({pipe.backend}, {pipe.precision}, {pipe.device})", err=True)


@contextmanager
def _watched(
    hidden: bool, number: int, total: int, preview: int | None
) -> Iterator[dict[str, Any]]:
    """What shows the run on a terminal's standard error, as parameters of a pipeline: a bar over
    the evaluations, or previews where they are asked for; nothing elsewhere."""
    if hidden or not sys.stderr.isatty():
        yield {}
        return
    if preview is not None:
        from .. import previews
        from .terminal_pictures import form, screen

        if (how := form(sys.stderr)) is not None:
            with screen(sys.stderr, how) as shown:

                def show(pictures: list[Image.Image], done: int, of: int | None) -> None:
                    shown.show(previews.side_by_side(pictures), f"{done}/{of or '?'}")

                yield {"preview": show, "preview_every": preview}
            return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(
            f"prompt {number + 1}/{total}" if total > 1 else "denoising", total=None
        )

        def callback(done: int, evaluations: int | None) -> None:
            bar.update(task, completed=done, total=evaluations)

        yield {"callback": callback}
