"""sdfast info, samplers and doctor: what there is, and what can be used here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ..caching import AUTO, Cache
from ..errors import InvalidRequest
from .options import evaluations

if TYPE_CHECKING:
    from ..bundle import Graph, Network
    from ..ranges import Allowed


@click.command()
@click.argument("bundle", default="demo")
@click.option("--graph", is_flag=True, help="Compare every graph with the plain one, by operator.")
@click.option("--json", "as_json", is_flag=True, help="Print bundle.json itself.")
def info(bundle: str, graph: bool, as_json: bool) -> None:
    """Check a BUNDLE and show what it holds."""
    from dataclasses import asdict

    from .. import store
    from ..bundle import load

    found = load(store.find(bundle))  # every byte of it read
    manifest = found.manifest
    if as_json:
        click.echo(json.dumps(asdict(manifest), indent=2, ensure_ascii=False))
        return
    sizes, defaults = manifest.sizes, manifest.defaults
    total = sum(file.stat().st_size for file in found.path.rglob("*") if file.is_file())
    click.echo(f"{found.name}: {found.path} ({total / 1e6:.1f} MB, every checksum right)")
    click.echo(
        f"{manifest.family}, task {manifest.task}, {manifest.prediction}; "
        f"{sizes.width}×{sizes.height} pixels, {sizes.minimum}…{sizes.maximum} in multiples of "
        f"{sizes.multiple}"
    )
    if defaults is not None:
        click.echo(
            f"defaults: {defaults.sampler}, {defaults.schedule}, {defaults.steps} steps, "
            f"guidance {defaults.guidance:g}"
        )
    for note in manifest.notes:
        click.echo(f"note: {note}")
    for name, network in manifest.networks.items():
        _network(name, network)
        if graph:
            _operators(network.graph)


def _network(name: str, network: Network) -> None:
    graph, difference = network.graph, network.difference
    tensors = f"{', '.join(network.inputs)} → {', '.join(network.outputs)}"
    kept = f", {len(network.kept)} layers in fp32" if network.kept else ""
    before, after = sum(graph.plain.values()), sum(graph.operators.values())
    click.echo(
        f"  {click.style(name, bold=True)}: {tensors}; {network.parameters:,} parameters, "
        f"{network.precision}{kept}"
    )
    click.echo(
        f"      {before:,} → {after:,} operators of opset {graph.opset}"
        f" ({', '.join(graph.options) or 'no options'})"
    )
    click.echo(
        f"      within {difference.absolute:.1g} of torch, {difference.relative:.1g} relative, "
        f"{difference.mean:.1g} in the mean; 1 − cosine {1 - difference.cosine:.1g}"
    )


def _operators(graph: Graph) -> None:
    names = {**graph.plain, **graph.operators}
    width = max(map(len, names), default=0)
    for name in sorted(names):
        before, after = graph.plain.get(name, 0), graph.operators.get(name, 0)
        change = f"{after - before:+6,}" if after != before else ""
        click.echo(f"        {name:{width}} {before:6,} → {after:6,} {change}".rstrip())


@click.command()
@click.option("--show", metavar="SAMPLER", help="Print the program that it compiles to.")
@click.option("--steps", type=int, default=4, show_default=True, help="Of that program.")
@click.option("--schedule", default="karras", show_default=True, help="Of that program.")
@click.option(
    "--cache",
    default="1",
    is_flag=False,
    flag_value="auto",
    metavar="[N|0,A,B,…]",
    callback=lambda _context, option, text: evaluations(option, text),
    help="Evaluations of that program that run the whole network: see sdfast generate.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; of --show, the program itself.")
def samplers(
    show: str | None, steps: int, schedule: str, cache: Cache | str, as_json: bool
) -> None:
    """List the samplers and schedules, or show what one compiles to.

    \b
    sdfast samplers
    sdfast samplers --show dpmpp_2m --steps 4
    sdfast samplers --show "Euler a" --steps 20 --json > euler_ancestral.json
    """
    if show is None:
        _list(as_json)
    else:
        _show(show, steps, schedule, cache, as_json)


def _list(as_json: bool) -> None:
    from .. import samplers as library
    from .. import schedules

    found = [library.get(name) for name in library.names()]
    if as_json:
        rows = [
            {
                "name": s.name,
                "aliases": s.aliases,
                "family": s.family,
                "static": s.static,
                "stochastic": s.stochastic,
                "noise": s.noise,
                "parameters": {n: None if v == math.inf else v for n, v in s.parameters.items()},
                "evaluations_at_20_steps": s.evaluations(20),
                "paper": s.paper,
                "summary": s.doc,
            }
            for s in found
        ]
        listed = [
            {"name": n, "aliases": schedules.aliases(n), "parameters": schedules.parameters(n)}
            for n in schedules.names()
        ]
        click.echo(json.dumps({"samplers": rows, "schedules": listed}, indent=2))
        return
    for s in found:
        click.echo(f"{click.style(s.name, bold=True)} ({', '.join(s.aliases)})")
        click.echo(f"    {s.doc} ({s.paper})")
        _parameters(s.parameters, s.ranges)
    click.echo(f"\n{click.style('schedules', bold=True)}")
    for name in schedules.names():
        also = f" ({', '.join(schedules.aliases(name))})" if schedules.aliases(name) else ""
        click.echo(f"{click.style(name, bold=True)}{also}")
        _parameters(schedules.parameters(name), schedules.ranges(name))


def _parameters(defaults: Mapping[str, Any], ranges: Mapping[str, Allowed]) -> None:
    for name, default in defaults.items():
        click.echo(f"      {name}={default}: {ranges[name]}")


# The trained levels of Stable Diffusion, and the latent of its 512 × 512 pictures in float32.
_BETAS = ("scaled_linear", 0.00085, 0.012, 1000)
_LATENT_BYTES = 4 * 64 * 64 * 4


def _show(name: str, steps: int, schedule: str, cache: Cache | str, as_json: bool) -> None:
    from .. import program, schedules
    from .. import samplers as library
    from ..caching import cached, checked, usual
    from ..request import visited

    sampler = library.get(name)
    if not sampler.static:
        raise InvalidRequest(
            f"sampler {sampler.name} has no program: what it does next depends on the picture"
        )
    ns = schedules.NoiseSchedule.from_betas(*_BETAS)
    sigmas = visited(schedule, steps, ns, sampler.drops_penultimate)
    asked = usual(sampler) if cache == AUTO else checked(cache)
    traced = cached(program.trace(sampler.name, sigmas), asked)
    if as_json:
        click.echo(traced.to_json())
        return
    click.echo(f"{sampler.name}, {schedules.get(schedule)}, {len(sigmas) - 1} steps")
    click.echo(traced)
    click.echo(
        f"{len(traced.instructions)} instructions, {traced.evaluations} evaluations, "
        f"{traced.slots} slots, {traced.latents_moved} latents moved: "
        f"{traced.latents_moved * _LATENT_BYTES / 2**20:.1f} MiB at 512×512"
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Show what this machine can run, and why not the rest."""
    from ..doctor import examine

    found = examine()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for heading, facts in found.items():
        click.echo(click.style(heading, bold=True))
        for name, fact in facts.items():
            click.echo(f"  {name}: {fact}")
