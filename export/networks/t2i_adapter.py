"""T2I-Adapters (arXiv:2302.08453) in diffusers' naming: small networks that look at a picture
once, and whose features are added in the down half of a U-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import CheckpointError
from ..graph import Graph
from .layers import conv

TYPES = ("full_adapter", "full_adapter_xl", "light_adapter")
_LATENT = 8  # pixels a side of one latent pixel


def feature(place: int, level: int) -> str:
    """The name of what is added at that of `unet.places`, where the latent's sides are halved
    `level` times: a U-Net takes what an adapter gives where they agree in names and channels."""
    return f"adapter_{place}_{level}"


def t2i_adapter(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> Graph:
    """condition [R, C, 8h, 8w] in 0 … 1 → adapter_PLACE_LEVEL [R, …], for unet.places."""
    g = Graph(shapes)
    x = g.input("condition", "f32", ["rows", config["in_channels"], "image_height", "image_width"])
    found = levels(config)
    x = _unshuffled(g, x, config["in_channels"], config["downscale_factor"])
    if g.has("adapter.conv_in"):
        x = conv(g, x, "adapter.conv_in")
    channels = [*config["channels"], config["channels"][-1]]  # a light one's last has them twice
    for k, (path, level) in enumerate(zip(g.children("adapter.body"), found, strict=True)):
        if k and level > found[k - 1]:
            halves = {"kernel_shape": [2, 2], "strides": [2, 2]}
            x = g.add("AveragePool", x, name=f"{path}.downsample", **halves)
        name = feature(k, level)
        g.output(name, "f32", ["rows", channels[k], f"{name}.h", f"{name}.w"], _block(g, x, path))
        x = name
    return g


def features(config: Mapping[str, Any]) -> list[str]:
    """The outputs' names."""
    return [feature(k, level) for k, level in enumerate(levels(config))]


def levels(config: Mapping[str, Any]) -> list[int]:
    """How often each output's sides are halved, from the latents'. Raises CheckpointError for what
    adds to no Stable Diffusion."""
    kind, factor = config["adapter_type"], config["downscale_factor"]
    for key, allowed in (
        ("adapter_type", TYPES),
        ("downscale_factor", (_LATENT, 2 * _LATENT)),
        ("in_channels", (1, 3)),
    ):
        if config[key] not in allowed:
            raise CheckpointError(
                f"the T2I-Adapter's {key} is {config[key]!r}; the exporter takes "
                f"{', '.join(map(str, allowed))}"
            )
    count = len(config["channels"]) + (kind == "light_adapter")
    halving = (2,) if kind == "full_adapter_xl" else range(1, count)
    return [factor // _LATENT - 1 + sum(k >= at for at in halving) for k in range(count)]


def _unshuffled(g: Graph, x: str, channels: int, side: int) -> str:
    """[R, C, h · side, w · side] → [R, C · side², h, w].

    Not by SpaceToDepth, which has a pixel's channels beside each other where PyTorch has a
    channel's pixels: OpenVINO's reads others once a Gather puts them in order before a convolution.
    """
    for shape, order in (
        ([0, 0, 0, -1, side], [0, 3, 4, 1, 2]),  # w, its part, C, h · side
        ([0, 0, side, channels, -1, side], [0, 4, 1, 3, 5, 2]),  # h, w, C, both parts
        ([0, 0, 0, channels * side * side], [0, 3, 1, 2]),
    ):
        x = g.add("Reshape", x, g.integers(shape), name="adapter.unshuffle.sides")
        x = g.add("Transpose", x, name="adapter.unshuffle", perm=order)
    return x


def _block(g: Graph, x: str, path: str) -> str:
    if g.has(f"{path}.in_conv"):
        x = conv(g, x, f"{path}.in_conv")
    for resnet in g.children(f"{path}.resnets"):
        y = g.add("Relu", conv(g, x, f"{resnet}.block1"), name=f"{resnet}.act")
        x = g.add("Add", conv(g, y, f"{resnet}.block2"), x, name=resnet)
    return conv(g, x, f"{path}.out_conv") if g.has(f"{path}.out_conv") else x
