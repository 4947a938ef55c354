"""sdfast info, samplers and doctor: what there is, and what can be used here."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("bundle", default="demo")
@click.option("--json", "as_json", is_flag=True, help="Print bundle.json itself.")
def info(bundle: str, as_json: bool) -> None:
    """Check a BUNDLE and show what it holds."""
    from dataclasses import asdict

    from .. import store

    found = store.load(bundle)
    manifest = found.manifest
    if as_json:
        click.echo(json.dumps(asdict(manifest), indent=2, ensure_ascii=False))
        return
    sizes, defaults = manifest.sizes, manifest.defaults
    total = sum(file.stat().st_size for file in found.path.rglob("*") if file.is_file())
    click.echo(f"{found.name}: {found.path} ({total / 1e6:.1f} MB, every checksum right)")
    click.echo(
        f"{manifest.family}, {manifest.prediction}; {sizes.width}×{sizes.height} pixels, "
        f"{sizes.minimum}…{sizes.maximum} in multiples of {sizes.multiple}"
    )
    click.echo(
        f"defaults: {defaults.sampler}, {defaults.schedule}, {defaults.steps} steps, "
        f"guidance {defaults.guidance:g}"
    )
    for name, network in manifest.networks.items():
        tensors = f"{', '.join(network.inputs)} → {', '.join(network.outputs)}"
        click.echo(
            f"  {name}: {network.parameters:,} parameters, {tensors}, "
            f"within {network.difference.absolute:.1g} of torch"
        )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def samplers(as_json: bool) -> None:
    """List the samplers and schedules."""
    from .. import samplers as library
    from .. import schedules

    found = [library.get(name) for name in library.names()]
    if as_json:
        rows = [
            {
                "name": s.name,
                "aliases": s.aliases,
                "family": s.family,
                "stochastic": s.stochastic,
                "evaluations_at_20_steps": s.evaluations(20),
                "paper": s.paper,
                "summary": s.doc,
            }
            for s in found
        ]
        click.echo(json.dumps({"samplers": rows, "schedules": schedules.names()}, indent=2))
        return
    for s in found:
        click.echo(f"{click.style(s.name, bold=True)} ({', '.join(s.aliases)})")
        click.echo(f"    {s.doc} {s.paper}")
    click.echo(f"\n{click.style('schedules', bold=True)}: {', '.join(schedules.names())}")


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
