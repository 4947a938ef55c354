"""sdfast export and recipes: from a checkpoint to a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from ..bundle import Manifest

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("source")
@click.argument("dest", type=_PATH)
@click.option(
    "--recipe", metavar="NAME|FILE", help="`sdfast recipes` lists them; else by its kind."
)
@click.option(
    "--backend", default="onnxruntime", show_default=True, help="Also openvino or tensorrt."
)
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--family", help="sd1, sd2, sdxl or sdxl-refiner, where it is detected wrongly.")
@click.option("--prediction", help="epsilon, v_prediction or sample, where it is detected wrongly.")
@click.option("--vae", type=_PATH, help="A VAE, folder or file, in place of SOURCE's.")
@click.option("--preview", type=_PATH, help="An AutoencoderTiny (TAESD) that draws previews.")
@click.option("--tokenizer", type=_PATH, help="A folder of CLIP's vocabulary.")
@click.option(
    "--lora", "loras", metavar="FILE[:WEIGHT]", multiple=True, help="Merge it. May be repeated."
)
@click.option(
    "--embedding", "embeddings", type=_PATH, multiple=True, help="A word more. May be repeated."
)
@click.option("--precision", help="fp32, fp16, bf16, int8 or fp8, not the recipe's.")
@click.option("--link", is_flag=True, help="Hard links to SOURCE's own files: no copy.")
@click.option("--graph-from", metavar="BUNDLE", help="Take its graphs; only weights are new.")
@click.option("--allow-pickle", is_flag=True, help="Read .ckpt and .bin: nothing but tensors.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
def export(
    source: str, dest: Path, loras: tuple[str, ...], graph_from: str | None, **options: Any
) -> None:
    """Export SOURCE into a bundle at DEST, and compare it with torch.

    SOURCE is a folder in diffusers' layout (of a model or of one ControlNet), a .safetensors file,
    or owner/name on the hub. DEST's path is printed; what was measured goes to stderr.

    \b
    sdfast export ./my-checkpoint ./my-bundle
    sdfast export dreams.safetensors ./dreams --lora ink.safetensors:0.8 --lora fog.safetensors
    sdfast export ./sdxl ./sdxl-trt --recipe sdxl --backend tensorrt --preview ./taesdxl
    sdfast export stabilityai/sd-turbo ./sd-turbo --revision main --precision fp16
    sdfast export tuned.safetensors ./tuned --graph-from ./dreams --link
    sdfast generate "a red star" --bundle ./my-bundle
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from sdfast.export import export as export_checkpoint
    from sdfast.export import lora_and_weight

    from .. import store

    console = Console(stderr=True)
    options["loras"] = [lora_and_weight(text) for text in loras]
    options["graph_from"] = None if graph_from is None else store.find(graph_from)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        made = export_checkpoint(source, dest, **options, progress=progress)
    console.print(report(made.manifest))
    for note in made.manifest.notes:
        click.echo(note, err=True)
    click.echo(made.path)


def report(manifest: Manifest) -> Table:
    """Each network: operators with every option off and as it is, the largest and mean absolute
    error, the cosine similarity, and how many tensors stay float32. 80 columns wide."""
    from rich.table import Table

    title = "compared with torch (pictures in levels of 255)"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("network")
    table.add_column("precision")
    for name in ("operators", "largest", "mean", "cosine", "in fp32"):
        table.add_column(name, justify="right")
    for name, network in manifest.networks.items():
        graph, difference = network.graph, network.difference
        table.add_row(
            name,
            network.precision,
            f"{sum(graph.plain.values()):,} → {sum(graph.operators.values()):,}",
            f"{difference.absolute:.1e}",
            f"{difference.mean:.1e}",
            f"{difference.cosine:.6f}",
            f"{len(network.kept):,}" if network.kept else "",
        )
    return table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def recipes(as_json: bool) -> None:
    """List the recipes for `sdfast export --recipe`."""
    from sdfast.export import recipes as library

    found = [library.load(name) for name in library.names()]
    if as_json:
        rows = [{"name": r.name, "family": r.family, "purpose": r.purpose} for r in found]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for r in found:
        click.echo(f"{click.style(r.name, bold=True)} ({r.family}): {r.purpose}")
