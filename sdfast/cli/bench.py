"""sdfast bench: measurements on this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from .bench_processes import bench_compare, bench_peers, bench_pipeline, benchmark, listed


@click.group()
def bench() -> None:
    """Measure on this machine."""


@bench.command("samplers")
@click.option("--bundle", default="demo", show_default=True, help="Name or folder of a bundle.")
@click.option("--samplers", default="all", show_default=True, callback=listed(str), help="a,b,…")
@click.option("--schedules", default="", callback=listed(str), help="all, or a,b,… [the bundle's]")
@click.option("--steps", default="5,10,20,50", show_default=True, callback=listed(int))
@click.option("--prompts", type=int, default=16, show_default=True, help="Pictures each.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Of batches above 1.")
@click.option(
    *("--batch", "batches"),
    default="1,4",
    show_default=True,
    callback=listed(int),
    help="Images a request.",
)
@click.option("--backend", default="auto", show_default=True, help="See `sdfast doctor`.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--threads", type=int, default=0, help="Of the CPU. [one on each core]")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="A folder, new or to go on with."
)
def bench_samplers(out: Path, **options: Any) -> None:
    """Time and judge samplers × schedules × steps; a run that was stopped goes on.

    \b
    sdfast bench samplers --out results
    sdfast bench samplers --samplers euler,dpmpp_2m --schedules all --steps 10,20 --out results
    """
    from rich.console import Console
    from rich.progress import Progress

    module = benchmark("samplers")
    command = shlex.join(["sdfast", *sys.argv[1:]])
    plan = module.plan(module.Options(**options), out, command)
    click.echo(
        f"{len(plan.todo)} combinations to measure, {len(plan.results.records)} there already: "
        f"about {plan.seconds / 60:.1f} minutes",
        err=True,
    )
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=plan.seconds)
        written = module.run(
            plan, lambda seconds, doing: bar.update(task, advance=seconds, description=doing)
        )
    for file in written:
        click.echo(file)


for command in (bench_pipeline, bench_peers, bench_compare):
    bench.add_command(command)
