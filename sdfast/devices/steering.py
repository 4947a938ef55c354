"""A U-Net with ControlNets and T2I-Adapters beside it, as one network."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence

from .._core import combine
from ..tensors import Tensor
from .calls import Network

RESIDUAL, ADAPTER = "residual_", "adapter_"
"""What the names of what is added begin with: by ControlNets, by T2I-Adapters."""


class Steered:
    """U-Net and controls on one set of tensors, in which those of control k alone are named
    "k:condition", "k:scale", "k:residual_…" and "k:adapter_…"; with one ControlNet its residuals
    are the U-Net's.

    unet: takes what is added; plain: takes nothing, and runs where no control acts
    controlnets: by the number of the control; all others are T2I-Adapters, which have run already
    weights: of the controls at a timestep; to be set before a run
    """

    def __init__(self, unet: Network, plain: Network, controlnets: Mapping[int, Network]) -> None:
        self._unet, self._plain, self._controlnets = unet, plain, controlnets
        self.weights: Callable[[float], Sequence[float]] = lambda _: ()

    def bind(self, tensors: Mapping[str, Tensor], /) -> None:
        self._tensors = tensors
        self._unet.bind(tensors)
        self._plain.bind(tensors)
        self._own = {k: own(tensors, k) for k in self._controlnets}

    def run(self) -> None:
        tensors = self._tensors
        (t, *_) = memoryview(tensors["timestep"]).cast("B").cast("f")
        weights = dict(enumerate(self.weights(t)))
        if not any(weights.values()):
            self._plain.run()
            return
        acting = [k for k in self._controlnets if weights[k]]
        for k in acting:
            scale = tensors[f"{k}:scale"]
            filled = array("f", [weights[k]]) * scale.shape[0]
            memoryview(scale).cast("B")[:] = memoryview(filled).cast("B")
            self._controlnets[k].bind(self._own[k])  # now: two of them may be one network
            self._controlnets[k].run()
        if len(self._controlnets) > 1 or not acting:
            self._add_up(RESIDUAL, dict.fromkeys(acting, 1.0))
        self._add_up(ADAPTER, {k: w for k, w in weights.items() if k not in self._controlnets})
        self._unet.run()

    def _add_up(self, kind: str, weights: Mapping[int, float]) -> None:
        """What the U-Net takes: of each of a kind, the sum of what these controls add."""
        for name, total in self._tensors.items():
            if name.startswith(kind):
                adding = [k for k, w in weights.items() if w and f"{k}:{name}" in self._tensors]
                if adding:
                    parts = [self._tensors[f"{k}:{name}"] for k in adding]
                    combine(total, [weights[k] for k in adding], parts)
                else:
                    whole = memoryview(total).cast("B")
                    whole[:] = bytes(len(whole))


def own(tensors: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The tensors, with those of control k alone by their plain names."""
    prefix = f"{k}:"
    alone = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return {**tensors, **alone}
