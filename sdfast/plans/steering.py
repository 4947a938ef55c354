"""The ControlNets of a plan."""

from __future__ import annotations

from PIL import Image

from .. import control
from ..bundle import noise_schedule
from ..devices.steering import Steered
from ..opened import Opened
from ..request import Resolved
from ..tensors import Tensor

_OWN = ("condition", "scale")  # of each ControlNet's inputs


class Steering:
    """A U-Net with the ControlNets of a request beside it.

    unet: the U-Net's tensors, all with G·B rows, to which those of the ControlNets are added;
        tokens: of the context
    """

    def __init__(
        self, opened: Opened, request: Resolved, unet: dict[str, Tensor], tokens: int
    ) -> None:
        beside = [opened.beside(one.bundle) for one in request.controls]
        for one in beside:
            control.check(one.bundle, opened.bundle)
        self._bundles = [one.bundle for one in beside]
        rows, _, *lengths = unet["latent"].shape
        sides = lengths[0], lengths[1]
        size = (request.height, request.width)
        self._tensors = unet
        keys = opened.inputs("unet_adapters")["image_keys_values"]
        unet["image_keys_values"] = Tensor.zeros(keys.sides(rows, 1), keys.dtype)
        unet |= control.residuals(beside[0].bundle, rows, sides)
        for k, one in enumerate(beside):
            inputs = one.inputs("controlnet")
            unet[f"{k}:condition"] = Tensor.empty(inputs["condition"].sides(rows, *size), "f32")
            unet[f"{k}:scale"] = Tensor.empty((rows,), "f32")
            for name, spec in inputs.items():
                if name not in (*_OWN, *unet):  # what the U-Net reads hoisted, or not at all
                    unet[name] = spec.empty(rows, tokens)
            if len(beside) > 1:
                own = control.residuals(one.bundle, rows, sides)
                unet |= {f"{k}:{name}": tensor for name, tensor in own.items()}
        self._schedule = noise_schedule(opened.bundle.betas)
        self.network = Steered(
            opened.on_the_host("unet_adapters"),
            opened.on_the_host("unet"),
            [one.on_the_host("controlnet") for one in beside],
        )

    def tell(self, request: Resolved, images: range) -> None:
        """Takes a request's weights, and its pictures for those of its images."""
        for k, one in enumerate(request.controls):
            for picture in one.pictures:
                control.check_palette(picture, self._bundles[k])
            target = memoryview(self._tensors[f"{k}:condition"]).cast("B")
            rows = [_units(one.pictures[image % len(one.pictures)]) for image in images]
            half = b"".join(rows)
            target[:] = half * (len(target) // len(half))
        weights = control.weights(request.controls, request.sigmas, self._schedule.timestep)
        self.network.weights = weights


def _units(picture: Image.Image) -> bytes:
    """A picture as f32 [3, H, W], 0 … 1."""
    return b"".join(p.point(lambda v: v / 255, "F").tobytes() for p in picture.split())
