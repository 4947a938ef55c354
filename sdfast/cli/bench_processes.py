"""sdfast bench pipeline, peers and compare: measurements in processes of their own."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ..errors import BackendUnavailable, InvalidRequest


def listed(kind: type) -> Any:
    """Reads a list with commas in between."""

    def read(_: click.Context, parameter: click.Parameter, text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(word.strip()) for word in text.split(",") if word.strip())
        except ValueError:
            raise InvalidRequest(
                f"{parameter.opts[0]} is {text!r}; it must be whole numbers like 5,10,20"
            ) from None

    return read


def benchmark(module: str) -> Any:
    """A module of sdfast.benchmarks. Raises BackendUnavailable when it needs what is missing."""
    try:
        return import_module(f"sdfast.benchmarks.{module}")
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f'`sdfast bench` needs {error.name}, which is missing: pip install "sdfast[bench]"'
        ) from error


def _out(command: Any) -> Any:
    path = click.Path(path_type=Path)
    words = "A folder, new or to go on with."
    return click.option("--out", type=path, required=True, help=words)(command)


def _loading(command: Any) -> Any:
    """The options of loading a bundle; only those that are given are passed on."""
    options = (
        click.option("--backend", help="See `sdfast doctor`. [auto]"),
        click.option("--device", help="cpu, cuda or cuda:N. [auto]"),
        click.option("--precision", help="fp32, bf16 or fp16, where the backend has it. [auto]"),
        click.option("--low-memory", is_flag=True, default=None, help="Keep little in memory."),
        click.option("--threads", type=int, help="Of the CPU. [one on each core]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@click.command("pipeline")
@click.option("--bundle", default="demo", show_default=True, help="Name or folder of a bundle.")
@_loading
@click.option("--cache", type=int, help="Interval of step caching. [1: none]")
@click.option("--steps", type=int, help="Of a picture. [the bundle's]")
@click.option(
    *("--batch", "batches"),
    default="1,2,4,8",
    show_default=True,
    callback=listed(int),
    help="Images a request.",
)
@click.option(
    *("--sizes",),
    default="",
    callback=listed(int),
    help="Sides in pixels. [0.5, 0.75, 1.5 and 2 times the bundle's]",
)
@click.option("--runs", type=int, default=5, show_default=True, help="Timed requests a case.")
@_out
def bench_pipeline(
    out: Path,
    bundle: str,
    cache: int | None,
    steps: int | None,
    batches: tuple[int, ...],
    sizes: tuple[int, ...],
    runs: int,
    **load: Any,
) -> None:
    """Time stages, starts and memory, over batch, resolution and steps; goes on where it stopped.

    \b
    sdfast bench pipeline --out results
    sdfast bench pipeline --bundle ./sd15 --backend openvino --batch 1,2 --runs 2 --out results
    """
    module = benchmark("pipeline")
    request = _given(cache=cache)
    options = module.Options(bundle, _given(**load), request, steps, batches, sizes, runs)
    _run(module, options, out)


@click.command("peers")
@click.option("--bundle", default="demo", show_default=True, help="Name or folder of a bundle.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder in diffusers' layout that the bundle was made from.",
)
@click.option(
    *("--peers", "names"),
    default="all",
    show_default=True,
    callback=listed(str),
    help="a,b,… of sdfast, diffusers, diffusers-bf16, diffusers-compiled, optimum-onnx and "
    "optimum-openvino; on a GPU of sdfast, diffusers-fp16 and diffusers-fp16-compiled.",
)
@click.option(
    *("--variant", "variants"),
    multiple=True,
    metavar="NAME:OPTION=VALUE,…",
    help="sdfast otherwise, such as sdfast-cached:cache=3; may be given again.",
)
@_loading
@click.option("--steps", type=int, help="[the bundle's]")
@click.option("--size", type=int, help="Side in pixels. [the bundle's]")
@click.option("--guidance", type=float, help="[the bundle's]")
@click.option("--runs", type=int, default=3, show_default=True, help="Timed pictures a process.")
@click.option("--rounds", type=int, default=1, show_default=True, help="Processes a peer.")
@click.option(
    "--environments",
    type=click.Path(path_type=Path),
    default=Path(".venv-peers"),
    show_default=True,
    help="The folder of the peers' virtual environments.",
)
@_out
def bench_peers(
    out: Path,
    bundle: str,
    checkpoint: Path,
    names: tuple[str, ...],
    variants: tuple[str, ...],
    steps: int | None,
    size: int | None,
    guidance: float | None,
    runs: int,
    rounds: int,
    environments: Path,
    **load: Any,
) -> None:
    """Time sdfast beside diffusers and optimum on one checkpoint; goes on where it stopped.

    \b
    sdfast bench peers --checkpoint export/demo/checkpoint --out results
    sdfast bench peers --bundle ./sd15 --checkpoint ./sd15-checkpoint --guidance 7.5 --out results
    """
    module = benchmark("peers.comparison")
    options = module.Options(
        bundle=bundle,
        checkpoint=checkpoint,
        peers=() if names == ("all",) else names,
        variants=module.variants(variants),
        load=_given(**load),
        steps=steps,
        size=size,
        guidance=guidance,
        runs=runs,
        rounds=rounds,
        environments=environments,
    )
    _run(module, options, out)


def _run(module: Any, options: Any, out: Path) -> None:
    """Plans and measures, with a bar, and lists what was written."""
    from rich.console import Console
    from rich.progress import Progress

    plan = module.plan(options, out, shlex.join(["sdfast", *sys.argv[1:]]))
    there = sum(not record.skipped for record in plan.results.records)
    usable = sum(not task.unusable for task in plan.todo)
    click.echo(f"{usable} processes to measure, {there} there already", err=True)
    try:
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("starting", total=plan.cost)
            written = module.run(
                plan, lambda cost, doing: bar.update(task, completed=cost, description=doing)
            )
    except KeyboardInterrupt:
        click.echo(f"stopped: {out} keeps what is done, the same command goes on", err=True)
        sys.exit(130)
    for file in written:
        click.echo(file)
    records = benchmark("measurements").load(written[0]).records
    skipped = dict.fromkeys(f"{r.case}: {r.skipped}" for r in records if r.skipped)
    for reason in skipped:
        click.echo(reason, err=True)
    if any(r.skipped and r.skipped.startswith(benchmark("processes").FAILED) for r in records):
        sys.exit(1)


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--quantities",
    default="request_seconds",
    show_default=True,
    callback=listed(str),
    help="all, or a,b,… as docs/benchmarks.md lists them.",
)
@click.option(
    "--fail-above", type=float, help="Exit with 1 where the ratio of medians is above this."
)
def bench_compare(
    before: Path, after: Path, quantities: tuple[str, ...], fail_above: float | None
) -> None:
    """Compare two results.json of one benchmark: ratios of the medians, AFTER to BEFORE.

    \b
    sdfast bench compare before/results.json after/results.json --fail-above 1.10
    """
    from rich.console import Console
    from rich.table import Table

    compare, measurements = benchmark("compare"), benchmark("measurements")
    was, now = measurements.load(before), measurements.load(after)
    changes = compare.changes(was, now, quantities)
    for line in compare.differences(was, now):
        click.echo(f"measured otherwise: {line}", err=True)
    table = Table("case", "quantity", "before", "after", "ratio", "by quartiles")
    for change in changes:
        low, high = change.range
        numbers = (f"{change.before.median:.4g}", f"{change.after.median:.4g}")
        spread = f"{low:.3f}–{high:.3f}"
        table.add_row(change.case, change.quantity, *numbers, f"{change.ratio:.3f}", spread)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    above = compare.slower(changes, fail_above) if fail_above is not None else ()
    if above:
        worst = max(above, key=lambda change: change.ratio)
        click.echo(
            f"{len(above)} of {len(changes)} above {fail_above:g}: {worst.case}, "
            f"{worst.quantity} takes {worst.ratio:.2f} times as much",
            err=True,
        )
        sys.exit(1)
