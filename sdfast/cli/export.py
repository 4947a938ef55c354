"""sdfast export: from a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
def export(checkpoint: Path, dest: Path, overwrite: bool) -> None:
    """Export a CHECKPOINT folder (diffusers' layout) into a bundle at DEST.

    \b
    sdfast export ./my-checkpoint ./my-bundle
    sdfast generate "a red star" --bundle ./my-bundle
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from sdfast.export import export as export_checkpoint

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        made = export_checkpoint(checkpoint, dest, overwrite=overwrite, progress=progress)
    click.echo(made.path)
