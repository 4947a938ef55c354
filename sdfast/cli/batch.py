"""sdfast batch: many requests into a folder, which a later run goes on with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidRequest
from .options import OPENING, of_a_sweep, of_opening, origin_of

if TYPE_CHECKING:
    from PIL import Image

    from ..batches import Failure
    from ..picture_folder import Folder, Record
    from ..pipeline import Callback, Pipeline
    from ..prompt_files import Row
    from ..sweeps import Axis, Picture


@click.command()
@click.argument("sources", nargs=-1, metavar="PROMPT|FILE…")
@click.option("--bundle", default="demo", show_default=True, help="Name or folder of a bundle.")
@of_a_sweep
@click.option(
    "--replace",
    metavar="A,B,…",
    help="Draw every prompt with each of these in the place of the first.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="A folder, new or to go on with.",
)
@click.option("--format", "form", default="png", show_default=True, help="png, jpeg or webp.")
@click.option("--sheet", is_flag=True, help="Also write contact sheets of all pictures.")
@of_opening
@click.option(
    "--ray", "on_ray", is_flag=True, help="Draw on a Ray cluster, --threads cores a pipeline."
)
@click.option(
    *("--ray-address",), help="Of a cluster that runs. [RAY_ADDRESS, or this machine alone]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the line of each picture drawn.")
@click.pass_context
def batch(
    context: click.Context,
    /,
    sources: tuple[str, ...],
    bundle: str,
    out: Path,
    form: str,
    sheet: bool,
    on_ray: bool,
    ray_address: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw many pictures: of several PROMPTs, or of files of them (.txt, .csv, .jsonl, .parquet).

    Options hold for all rows that do not say otherwise. Lists are swept, each with each, and become
    grids: the first list gives the columns, the second the rows, others grids of their own. What
    has commas of its own is swept by giving it again. What is there is not drawn again. Exits with
    1 where some could not be drawn.

    \b
    sdfast batch "a red star" --sampler euler,dpmpp_2m --steps 5,10,20 --out sweep/
    sdfast batch "a red star" --replace red,green,blue --guidance 1,4,7 --out words/
    sdfast batch prompts.csv --count 4 --sheet --out pictures/
    sdfast batch prompts.csv --ray-address auto --out pictures/
    """
    from ..batches import expand, runs
    from ..picture_folder import Folder
    from ..pipeline import load
    from ..provenance import lora_folders
    from ..sweeps import swept

    opening = {name: options.pop(name) for name in OPENING}
    on_ray = on_ray or ray_address is not None
    if on_ray:
        opening["threads"] = _connected(context, ray_address, opening["threads"])
    rows = _rows(sources)
    shared, axes = swept(_lists(context, options))
    pipe = load(bundle, **opening)
    origin = origin_of(pipe, opening)
    pictures, failures = expand(rows, shared, axes, pipe, origin)
    folder = Folder(out, form, origin, lora_folders(pipe.bundle, opening["lora_dir"]))
    different = {picture.name: picture for picture in pictures}
    there = {n for n, p in different.items() if folder.has(n, p.request)}
    missing = runs(picture for name, picture in different.items() if name not in there)
    with _progress_bar(sum(map(len, missing))) as callback:
        outcomes = _outcomes(missing, pipe, folder, callback, opening if on_ray else None)
        drawn = _told(outcomes, folder, failures, as_json)
    whole = [picture for picture in pictures if picture.name in there | drawn]
    for file in _sheets(whole, rows, axes, folder, sheet):
        click.echo(file, err=as_json)
    click.echo(f"{len(different)} pictures: {len(there)} were there, {len(drawn)} drawn", err=True)
    for failure in failures:
        click.echo(f"sdfast: {failure.place}: {failure.reason}", err=True)
    context.exit(1 if failures else 0)


def _rows(sources: tuple[str, ...]) -> list[Row]:
    from ..prompt_files import Row, is_file, read

    if not sources:
        raise InvalidRequest("say what to draw: a prompt or more, or a file of them")
    return [
        row
        for source in sources
        for row in (
            read(Path(source)) if is_file(source) else [Row(repr(source), {"prompt": source})]
        )
    ]


def _lists(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """What is swept, in the order in which it was given: that of the context's own."""
    from ..sweeps import REPLACED

    lists = {name: options[name] for name in context.params if options.get(name)}
    if isinstance(discard := options["discard_penultimate"], bool):
        lists["discard_penultimate"] = (discard,)
    if (words := lists.get(REPLACED)) is not None:
        lists[REPLACED] = tuple(part.strip() for part in words.split(","))
        if len(lists[REPLACED]) < 2:
            raise InvalidRequest(
                f"--replace is {words!r}; it must be the words that are replaced and others, as "
                "red,green,blue"
            )
    return lists


def _connected(context: click.Context, address: str | None, threads: int) -> int:
    """Connects to a Ray cluster for as long as the command runs; the threads of each pipeline."""
    from ..cluster.connection import connected, cores_of_a_node

    context.with_resource(connected(address))
    return threads or cores_of_a_node()


def _outcomes(
    planned: Sequence[Sequence[Picture]],
    pipe: Pipeline,
    folder: Folder,
    callback: Callable[[Sequence[Picture]], Callback | None],
    on_ray: Mapping[str, Any] | None,
) -> Iterator[list[Record] | Failure]:
    """Draws here, or on the cluster by pipelines that are opened as `on_ray` says."""
    if on_ray is None:
        from ..batches import draw

        return draw(planned, pipe, folder.add, callback)
    from ..cluster import batches

    return batches.draw(planned, pipe, folder, on_ray, callback)


def _told(
    outcomes: Iterator[list[Record] | Failure],
    folder: Folder,
    failures: list[Failure],
    as_json: bool,
) -> set[str]:
    """Prints what comes, and notes what fails; the names of what was drawn."""
    from ..batches import Failure

    drawn: set[str] = set()
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            failures.append(outcome)
            continue
        for record in outcome:
            drawn.add(Path(record.file).stem)
            line = json.dumps(asdict(record), ensure_ascii=False)
            click.echo(line if as_json else folder.path / record.file)
    return drawn


def _sheets(
    pictures: Sequence[Picture],
    rows: Sequence[Row],
    axes: Sequence[Axis],
    folder: Folder,
    wanted: bool,
) -> Iterator[Path]:
    """Writes the grids of a sweep, and contact sheets where they are wanted, under digests of what
    is on them, so that other batches in the folder keep theirs."""
    from ..images import png
    from ..provenance import digest_of
    from ..sheets import contact_sheets, grid
    from ..store import write_atomically
    from ..sweeps import caption, grids

    def written(kind: str, shown: Any, image: Image.Image) -> Path:
        file = folder.path / f"{kind}-{digest_of(shown)[:8]}.png"
        write_atomically(file, png(image))
        return file

    for of in grids(pictures, rows, axes, lambda picture: folder.file(picture.name)):
        cells = [(*place, file.name) for place, file in sorted(of.files.items())]
        yield written("grid", [of.titles, of.columns, of.rows, cells], grid(of))
    if wanted:
        captions = {folder.file(p.name): caption(p, axes) for p in pictures}
        shown = digest_of([(file.name, text) for file, text in captions.items()])
        for number, page in enumerate(contact_sheets(list(captions.items())), 1):
            yield written(f"sheet-{number}", shown, page)


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[Sequence[Picture]], Callback | None]]:
    """A bar over the pictures on a terminal's standard error; callbacks that do nothing
    elsewhere."""
    if not total or not sys.stderr.isatty():
        yield lambda _run: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pictures", total=total)
        before = 0

        def of(run: Sequence[Picture]) -> Callback:
            nonlocal before
            start, before = before, before + len(run)
            bar.update(task, completed=start, description=f"picture {start + 1} of {total}")

            def progress(done: int, evaluations: int | None) -> None:
                part = len(run) * done / evaluations if evaluations else 0
                bar.update(task, completed=start + part)

            return progress

        yield of
