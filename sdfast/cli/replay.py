"""sdfast replay: whether a picture can be drawn again, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..replaying import Replayed

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("picture", type=_FILE)
@click.option("--bundle", help="Its folder or name, where it is not the one of the picture's name.")
@click.option("--backend", help="In place of the one that drew it: see `sdfast doctor`.")
@click.option("--image", type=_FILE, help="The picture that it was drawn from.")
@click.option("--mask", type=_FILE, help="The mask that it was drawn with.")
@click.option("--lora-dir", type=_FILE, help="A folder of the LoRA that its prompt names.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def replay(
    context: click.Context,
    picture: Path,
    bundle: str | None,
    backend: str | None,
    image: Path | None,
    mask: Path | None,
    lora_dir: Path | None,
    as_json: bool,
) -> None:
    """Draw PICTURE, a file of sdfast, again and compare all pixels: alone and, where that is
    another picture, among those that it was drawn with.

    Exits with 0 where it is the same bit for bit, 1 where it differs, 2 where it cannot be drawn
    again.

    \b
    sdfast replay circle.png
    sdfast replay circle.png --backend onnxruntime
    """
    from ..replaying import replay as replayed

    found = replayed(
        picture, bundle=bundle, backend=backend, image=image, mask=mask, lora_dir=lora_dir
    )
    if as_json:
        click.echo(json.dumps({"file": str(picture), **found.to_dict()}, ensure_ascii=False))
    else:
        for line in told(found):
            click.echo(f"{picture}: {line}" if not line.startswith(" ") else line)
    context.exit(0 if found.same else 1)


def told(found: Replayed) -> list[str]:
    """What came of it, in words."""
    now = found.now
    by = f"{now.backend} {now.backend_version}, {now.precision}, {now.machine}"
    by = by if found.together == 1 else f"{by}, among {found.together} drawn together"
    if found.same and found.lossy:
        return [f"the same, bit for bit, as what was drawn; {found.lossy} keeps it nearly ({by})"]
    if found.same:
        return [f"the same, bit for bit ({by})"]
    lines = [_how(found)]
    if found.altered:
        lines.append("    the file was changed after it was drawn: it has other pixels than then")
    if found.changes is None:
        lines.append("    it does not say what drew it")
    lines += [f"    {one.name} was {one.then}, is {one.now}" for one in found.changes or ()]
    if found.changes == () and not found.altered:
        lines.append(f"    nothing else is known to differ ({by})")
    return lines


def _how(found: Replayed) -> str:
    if found.lossy:
        return f"differs; {found.lossy} does not keep pixels, so by how much is not known"
    if found.difference is None:
        return "differs: it is of another size than what is drawn"
    apart = found.difference
    return (
        f"differs: {apart.pixels} of {apart.of} pixels, by {apart.largest}/255 at most and "
        f"{apart.mean:.2g}/255 on average"
    )
