"""LoRA on a bundle, without an export: other values for some of its graphs' initializers, which
engines are opened with (`backends.Options.replaced`).

They are W + Σ weight · ΔW in float32, rounded once to the type that they are stored in. Where the
layers of a checkpoint are in a graph, the graph tells (graph_weights.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .. import graph_weights
from ..bundle import Bundle
from ..errors import BundleError, LoraError
from ..floats import Array, rounded, widened
from ..graph_weights import GraphWeight, Rows
from . import Lora, low_rank
from .files import Fitted, Model, Report, fitted
from .names import PREFIXES, Place

_OF_UNET = ("unet", "unet_shallow", "unet_adapters", "time_projection", "context_projection")
NETWORKS = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    **dict.fromkeys(_OF_UNET, "unet"),
}
"""The networks that LoRA change → the component of the checkpoint that they are of."""
_PRECISIONS = ("fp32", "fp16", "bf16")

Weights = Mapping[str, Sequence[GraphWeight]]
"""The matrices of networks."""


@dataclass(frozen=True)
class Applied:
    """LoRA on the networks of a bundle.

    shapes: of the layers' weights, as the checkpoint has them
    files: the LoRA, in their order
    """

    bundle: Bundle
    weights: Weights
    shapes: Mapping[Place, tuple[int, ...]]
    files: Sequence[Fitted]

    @property
    def reports(self) -> tuple[Report, ...]:
        """What became of each file."""
        return tuple(one.report for one in self.files)

    def changes(self, network: str) -> bool:
        """Whether any of the network's weights is another than in the bundle."""
        return bool(self._changed(network))

    def values(self, network: str) -> dict[str, Array]:
        """The initializers that are others, by name, as the graph has them (bfloat16 as its bits).

        Raises LoraError for layers of other shapes, and for values that come out infinite.
        """
        return {one.name: self._value(network, one) for one in self._changed(network)}

    def _changed(self, network: str) -> list[GraphWeight]:
        changed = {place for one in self.files for place in one.layers}
        return [
            weight
            for weight in self.weights.get(network, ())
            if any(_place(network, rows) in changed for rows in weight.rows)
        ]

    def _value(self, network: str, weight: GraphWeight) -> Array:
        stored = weight.values(self.bundle.network(network).parent)
        exact = widened(stored).copy()
        # Outputs along the first axis, as the checkpoint has them.
        outputs = exact.T if weight.turned else exact
        start = 0
        for rows in weight.rows:
            end = start + rows.end - rows.first
            outputs[start:end] = self._merged(outputs[start:end], _place(network, rows), rows)
            start = end
        try:
            return rounded(exact, stored.dtype)
        except OverflowError as error:
            files = ", ".join(f"{r.file.name} × {r.weight:g}" for r in self.reports)
            raise LoraError(
                f"LoRA {files} make {weight.name} of {network} {error}: give smaller weights, if"
                " the files are whole"
            ) from error

    def _merged(self, values: low_rank.Matrix, place: Place, rows: Rows) -> low_rank.Matrix:
        """These rows of the layer's outputs, with what each file adds to them."""
        for one in self.files:
            if (layer := one.layers.get(place)) is None:
                continue
            try:
                difference = layer.difference(self.shapes[place])
            except ValueError as error:
                raise LoraError(f"{one.misfit} ({layer.name}: {error})") from error
            part, lengths = slice(rows.first, rows.end), layer.magnitude
            lengths = None if lengths is None else lengths[part]
            values = low_rank.merged(values, difference[part], lengths)
        return values


def applied(bundle: Bundle, loras: Sequence[Lora]) -> Applied:
    """These LoRA, one after the other, on the bundle's networks. The files are read whole.

    Raises LoraError as `files.fitted` does, and for a bundle whose weights are integers,
    BundleError for one that does not tell what its weights are.
    """
    present = [name for name in NETWORKS if name in bundle.manifest.networks]
    weights = {name: _matrices(bundle, name) for name in present}
    shapes = _shapes(weights)
    layers = {component: set[str]() for component in PREFIXES}
    for component, module in shapes:
        layers[component].add(module)
    model = Model(f"bundle {bundle.name}", bundle.manifest.family, layers)
    files = tuple(fitted(lora.file, lora.weight, model) for lora in loras)
    return Applied(bundle, weights, shapes, files)


def _matrices(bundle: Bundle, network: str) -> list[GraphWeight]:
    file, precision = bundle.network(network), bundle.manifest.networks[network].precision
    if precision not in _PRECISIONS:
        raise LoraError(
            f"{network} of bundle {bundle.name} is {precision}, to which a LoRA cannot be added at"
            " run time: merge it when you export (sdfast export --lora), or use a bundle in "
            f"{', '.join(_PRECISIONS)}"
        )
    try:
        found = [one for one in graph_weights.read(file.read_bytes()) if len(one.shape) > 1]
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}): export the bundle again") from error
    if any(not one.rows for one in found):
        raise BundleError(
            f"{file.name} of bundle {bundle.name} does not tell what its weights are of the"
            " checkpoint: export it again with this sdfast for LoRA at run time"
        )
    return found


def _shapes(weights: Weights) -> dict[Place, tuple[int, ...]]:
    """Of all layers: graphs have whole ones, or rows that are all there together."""
    found: dict[Place, tuple[int, ...]] = {}
    for network, matrices in weights.items():
        for weight in matrices:
            others = weight.shape[:1] if weight.turned else weight.shape[1:]
            for rows in weight.rows:
                place = _place(network, rows)
                outputs = max(rows.end, *found.get(place, (0,))[:1])
                found[place] = (outputs, *others)
    return found


def _place(network: str, rows: Rows) -> Place:
    return NETWORKS[network], rows.part.removesuffix(".weight")
