"""The ControlNets and T2I-Adapters of a plan."""

from __future__ import annotations

from PIL import Image

from .. import control
from ..bundle import noise_schedule
from ..devices.steering import Steered, own
from ..opened import Opened
from ..request import Resolved
from ..tensors import Tensor

_OWN = ("condition", "scale")  # of each one's inputs


class Steering:
    """A U-Net with the ControlNets and T2I-Adapters of a request beside it.

    unet: the U-Net's tensors, all with G·B rows, to which those of the others are added;
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
        for name, spec in control.absent(opened.bundle).items():
            unet[name] = Tensor.zeros(spec.sides(rows, 1, 1, 1), spec.dtype)
        kinds = [control.kind(one.bundle) for one in beside]
        for k, (name, one) in enumerate(zip(kinds, beside, strict=True)):
            inputs = one.inputs(name)
            unet[f"{k}:condition"] = inputs["condition"].empty(rows, *size)
            if name == "controlnet":
                unet[f"{k}:scale"] = Tensor.empty((rows,), "f32")
            for given, spec in inputs.items():
                if given not in (*_OWN, *unet):  # what the U-Net reads hoisted, or not at all
                    unet[given] = spec.empty(rows, tokens)
            unet |= control.added(one.bundle, rows, sides)
            if name == "t2i_adapter" or kinds.count(name) > 1:
                alone = control.added(one.bundle, rows, sides)
                unet |= {f"{k}:{given}": tensor for given, tensor in alone.items()}
        self._schedule = noise_schedule(opened.bundle.betas)
        engines = [n.on_the_host(name) for name, n in zip(kinds, beside, strict=True)]
        self._adapters = {k: e for k, e in enumerate(engines) if kinds[k] == "t2i_adapter"}
        self.network = Steered(
            opened.on_the_host("unet_adapters"),
            opened.on_the_host("unet"),
            {k: e for k, e in enumerate(engines) if kinds[k] == "controlnet"},
        )

    def tell(self, request: Resolved, images: range) -> None:
        """Takes a request's weights, and its pictures for those of its images, which T2I-Adapters
        look at now: what they add is the same at every step."""
        for k, one in enumerate(request.controls):
            for picture in one.pictures:
                control.check_palette(picture, self._bundles[k])
            condition = self._tensors[f"{k}:condition"]
            target = memoryview(condition).cast("B")
            maps = [one.pictures[image % len(one.pictures)] for image in images]
            half = b"".join(_units(m if condition.shape[1] == 3 else m.convert("L")) for m in maps)
            target[:] = half * (len(target) // len(half))
            if k in self._adapters:
                self._adapters[k].bind(own(self._tensors, k))
                self._adapters[k].run()
        weights = control.weights(request.controls, request.sigmas, self._schedule.timestep)
        self.network.weights = weights


def _units(picture: Image.Image) -> bytes:
    """A picture as f32 [C, H, W], 0 … 1."""
    return b"".join(p.point(lambda v: v / 255, "F").tobytes() for p in picture.split())
