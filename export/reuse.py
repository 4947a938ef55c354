"""`--graph-from`: the graphs, the recipe and what was verified are another bundle's; only the
weights are the checkpoint's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from .. import bundle, checksums
from ..bundle import Bundle, Manifest, Network
from ..errors import CheckpointError
from ..networks import EIGHT_BITS
from .components import Checkpoint
from .networks import Options
from .recipes import Recipe, alone


def read(folder: Path) -> Bundle:
    """The bundle whose graphs are taken; its weights are not looked at. Raises BundleError."""
    return Bundle(folder, bundle.parse(folder / bundle.MANIFEST))


def recipe(other: Bundle, checkpoint: Checkpoint, usual: Recipe) -> Recipe:
    """The recipe that the other bundle was exported by, as far as graphs and weights tell. usual:
    the one for the checkpoint's kind. Raises CheckpointError for a checkpoint of another kind."""
    theirs = other.manifest
    for ours, known in (
        (checkpoint.family, theirs.family),
        (checkpoint.task, theirs.task),
        (alone(checkpoint.components), alone(theirs.networks)),
    ):
        if ours != known:
            raise CheckpointError(
                f"the checkpoint is {ours}, bundle {theirs.name} {known}: its graphs are for "
                "another kind; export without --graph-from"
            )
    rounded = {network.precision for network in theirs.networks.values()} & set(EIGHT_BITS)
    if rounded:
        raise CheckpointError(
            f"bundle {theirs.name} is {min(rounded)}: its graphs hold the ranges of its own "
            "checkpoint's activations, which another's leave; export without --graph-from"
        )
    if "preview" in checkpoint.components and "preview_decoder" not in theirs.networks:
        raise CheckpointError(
            f"bundle {theirs.name} has no graph for a preview: leave --preview or --graph-from out"
        )
    chosen = {name for network in theirs.networks.values() for name in network.graph.options}
    reading = (network.inputs.get("latent") for network in theirs.networks.values())
    sides = next((latent.shape[2:] for latent in reading if latent is not None), (None, None))
    switches = {o.name: o.name in chosen for o in fields(Options) if o.type == "bool"}
    return replace(
        usual,
        name=theirs.source.get("recipe", usual.name),
        networks=tuple(theirs.networks),
        precision={name: network.precision for name, network in theirs.networks.items()},
        layout=theirs.source.get("layout", usual.layout),
        options=Options(**switches, height=sides[0], width=sides[1]),
    )


def described(manifest: Manifest, other: Bundle) -> Manifest:
    """The manifest with what the other's recipe says: sizes and defaults."""
    return replace(manifest, sizes=other.manifest.sizes, defaults=other.manifest.defaults)


def require_same(networks: Mapping[str, Network], folder: Path, other: Bundle) -> None:
    """Raises CheckpointError unless the new graphs are the other bundle's, byte for byte."""
    theirs = other.manifest
    for name, network in networks.items():
        if checksums.sha256(folder / network.file) != theirs.files[theirs.networks[name].file]:
            raise CheckpointError(
                f"the checkpoint's {name} is not of the architecture, layout and precision of "
                f"bundle {theirs.name}'s: export it without --graph-from"
            )
