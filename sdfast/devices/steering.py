"""A U-Net with ControlNets beside it, as one network."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence

from .._core import combine
from ..tensors import Tensor
from .calls import Network

RESIDUAL = "residual_"


class Steered:
    """U-Net and ControlNets on one set of tensors, in which those of control k alone are named
    "k:condition", "k:scale" and "k:residual_…"; with one control its residuals are the U-Net's.

    unet: takes residuals; plain: takes none, and runs where no control acts
    weights: of the controls at a timestep; to be set before a run
    """

    def __init__(self, unet: Network, plain: Network, controls: Sequence[Network]) -> None:
        self._unet, self._plain, self._controls = unet, plain, controls
        self.weights: Callable[[float], Sequence[float]] = lambda _: [0.0] * len(controls)

    def bind(self, tensors: Mapping[str, Tensor], /) -> None:
        self._tensors = tensors
        self._unet.bind(tensors)
        self._plain.bind(tensors)
        self._own = [{**tensors, **_of(tensors, k)} for k in range(len(self._controls))]

    def run(self) -> None:
        tensors = self._tensors
        (t, *_) = memoryview(tensors["timestep"]).cast("B").cast("f")
        weights = self.weights(t)
        acting = [k for k, weight in enumerate(weights) if weight]
        if not acting:
            self._plain.run()
            return
        for k in acting:
            scale = tensors[f"{k}:scale"]
            filled = array("f", [weights[k]]) * scale.shape[0]
            memoryview(scale).cast("B")[:] = memoryview(filled).cast("B")
            self._controls[k].bind(self._own[k])  # now: two of them may be one network
            self._controls[k].run()
        if len(self._controls) > 1:
            for name, total in tensors.items():
                if name.startswith(RESIDUAL):
                    parts = [tensors[f"{k}:{name}"] for k in acting]
                    combine(total, [1.0] * len(parts), parts)
        self._unet.run()


def _of(tensors: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    prefix = f"{k}:"
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
