"""sdfast export-triton: a bundle as a model of Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export-triton")
@click.argument("bundle")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", help="Of the model. [the bundle's]")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda: that it runs on.")
@click.option("--instances", type=int, default=1, show_default=True, help="Processes of it.")
@click.option("--backend", help="See `sdfast doctor`. [chosen by the server's machine]")
@click.option("--precision", help="fp32, bf16 or fp16. [chosen by the server's machine]")
@click.option(
    *("--network", "networks"),
    multiple=True,
    help="Also this network, alone, as a model NAME_NETWORK. May be repeated.",
)
def export_triton(
    bundle: str,
    folder: Path,
    name: str | None,
    device: str,
    instances: int,
    backend: str | None,
    precision: str | None,
    networks: tuple[str, ...],
) -> None:
    """Put BUNDLE, as a model that draws, into a model repository of Triton Inference Server.

    \b
    sdfast export-triton demo models
    sdfast export-triton ./sd15 models --name sd15 --device cuda --network text_encoder
    """
    from .. import store
    from ..triton import export

    options = {"backend": backend, "precision": precision}
    for made in export(
        store.load(bundle),
        folder,
        name=name,
        device=device,
        instances=instances,
        parameters={key: value for key, value in options.items() if value is not None},
        networks=networks,
    ):
        click.echo(made)
