"""The autoencoders (arXiv:2112.10752) and the tiny ones (AutoencoderTiny), in diffusers' naming.

What turns latents into pixels and back is in the graphs: scaling, clamping, rounding, layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import CheckpointError
from ..graph import ELEMENTS, Graph
from . import Options
from .layers import as_picture, as_tokens, attention, conv, group_norm, linear, silu, upsample

Shapes = Mapping[str, Sequence[int]]


def check(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a configuration that no family of Stable Diffusion has."""
    tiny = "encoder_block_out_channels" in config
    allowed: dict[str, tuple[Any, ...]] = {"act_fn": ("relu",) if tiny else ("silu", "swish")}
    if tiny:
        allowed |= {"upsampling_scaling_factor": (2,), "upsample_fn": ("nearest",)}
    for key, values in allowed.items():
        if config.get(key, values[0]) not in values:
            raise CheckpointError(
                f"the VAE's {key} is {config[key]!r}; only {values[0]!r} can be exported"
            )


def decoder(shapes: Shapes, config: Mapping[str, Any], options: Options) -> Graph:
    """latent [B, 4, h, w] → image u8 [B, 8h, 8w, 3]."""
    check(config)
    g = Graph(shapes)
    channels = config["latent_channels"]
    sides = (options.height or "height", options.width or "width")
    latent = g.input("latent", "f32", ["batch", channels, *sides])
    x = g.add("Div", latent, g.number(config["scaling_factor"]), name="unscaled")
    if config.get("shift_factor"):
        x = g.add("Add", x, g.number(config["shift_factor"]), name="unshifted")
    if "encoder_block_out_channels" in config:
        x = _tiny_decoder(g, x)
    else:
        x = _decoder(g, config, options, x)
        x = g.add("Mul", x, g.number(127.5), name="pixels.scaled")
        x = g.add("Add", x, g.number(127.5), name="pixels.shifted")
    x = g.add("Clip", x, g.number(0.0), g.number(255.0), name="pixels.clamped")
    x = g.add("Round", x, name="pixels.rounded")
    # Bytes are what comes in and goes out, and nothing else: TensorRT computes with none.
    x = g.add("Transpose", x, name="pixels.last", perm=[0, 2, 3, 1])
    x = g.add("Cast", x, name="pixels", to=ELEMENTS["u8"])
    height, width = _image_sides(config, options)
    g.output("image", "u8", ["batch", height, width, 3], x)
    return g


def encoder(shapes: Shapes, config: Mapping[str, Any], options: Options) -> Graph:
    """image u8 [B, 8h, 8w, 3] → mean, logvar [B, 4, h, w], not scaled."""
    check(config)
    g = Graph(shapes)
    image = g.input("image", "u8", ["batch", *_image_sides(config, options), 3])
    x = g.add("Cast", image, name="pixels", to=ELEMENTS["f32"])
    x = g.add("Transpose", x, name="pixels.first", perm=[0, 3, 1, 2])
    shape = [
        "batch",
        config["latent_channels"],
        options.height or "height",
        options.width or "width",
    ]
    if "encoder_block_out_channels" in config:
        mean = _tiny_encoder(g, g.add("Div", x, g.number(255.0), name="pixels.unit"))
        certain = g.add("Mul", mean, g.number(0.0), name="zeros")
        logvar = g.add("Sub", certain, g.number(30.0), name="certain")
    else:
        x = g.add("Div", x, g.number(127.5), name="pixels.scaled")
        x = _encoder(g, config, options, g.add("Sub", x, g.number(1.0), name="pixels.signed"))
        mean, logvar = g.split("Split", x, names=["mean", "moments.logvar"], axis=1, num_outputs=2)
        logvar = g.add("Clip", logvar, g.number(-30.0), g.number(20.0), name="logvar")
    g.output("mean", "f32", shape, mean)
    g.output("logvar", "f32", shape, logvar)
    return g


def image_scale(config: Mapping[str, Any]) -> int:
    """Pixels a side of one latent."""
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return int(2 ** (len(blocks) - 1))


def _image_sides(config: Mapping[str, Any], options: Options) -> tuple[int | str, int | str]:
    scale = image_scale(config)
    height = "image_height" if options.height is None else options.height * scale
    width = "image_width" if options.width is None else options.width * scale
    return height, width


def _decoder(g: Graph, config: Mapping[str, Any], options: Options, x: str) -> str:
    if g.has("post_quant_conv"):
        x = conv(g, x, "post_quant_conv")
    x = conv(g, x, "decoder.conv_in")
    x = _middle(g, config, options, x, "decoder.mid_block")
    for block in g.children("decoder.up_blocks"):
        for path in g.children(f"{block}.resnets"):
            x = _resnet(g, config, options, x, path)
        if g.has(f"{block}.upsamplers.0.conv"):
            path = f"{block}.upsamplers.0"
            x = conv(g, upsample(g, x, path), f"{path}.conv")
    return conv(g, _normal(g, config, options, x, "decoder.conv_norm_out"), "decoder.conv_out")


def _encoder(g: Graph, config: Mapping[str, Any], options: Options, x: str) -> str:
    x = conv(g, x, "encoder.conv_in")
    for block in g.children("encoder.down_blocks"):
        for path in g.children(f"{block}.resnets"):
            x = _resnet(g, config, options, x, path)
        if g.has(f"{block}.downsamplers.0.conv"):
            # One row and one column of zeros, at the bottom and on the right.
            x = conv(g, x, f"{block}.downsamplers.0.conv", stride=2, pads=[0, 0, 1, 1])
    x = _middle(g, config, options, x, "encoder.mid_block")
    x = conv(g, _normal(g, config, options, x, "encoder.conv_norm_out"), "encoder.conv_out")
    return conv(g, x, "quant_conv") if g.has("quant_conv") else x


def _middle(g: Graph, config: Mapping[str, Any], options: Options, x: str, path: str) -> str:
    first, *others = g.children(f"{path}.resnets")
    x = _resnet(g, config, options, x, first)
    for k, resnet in enumerate(others):
        if g.has(f"{path}.attentions.{k}"):
            x = _attention(g, config, options, x, f"{path}.attentions.{k}")
        x = _resnet(g, config, options, x, resnet)
    return x


def _normal(g: Graph, config: Mapping[str, Any], options: Options, x: str, path: str) -> str:
    return silu(g, group_norm(g, options, x, path, config["norm_num_groups"], 1e-6), path)


def _resnet(g: Graph, config: Mapping[str, Any], options: Options, x: str, path: str) -> str:
    y = conv(g, _normal(g, config, options, x, f"{path}.norm1"), f"{path}.conv1")
    y = conv(g, _normal(g, config, options, y, f"{path}.norm2"), f"{path}.conv2")
    if g.has(f"{path}.conv_shortcut"):
        x = conv(g, x, f"{path}.conv_shortcut")
    return g.add("Add", x, y, name=path)


def _attention(g: Graph, config: Mapping[str, Any], options: Options, x: str, path: str) -> str:
    """Over the latents of a picture, whose sides the middle has, one head of all channels."""
    channels = g.shapes[f"{path}.group_norm.weight"][0]
    y = group_norm(g, options, x, f"{path}.group_norm", config["norm_num_groups"], 1e-6)
    y, picture = as_tokens(g, y, path, channels)
    q, k, v = (linear(g, y, f"{path}.{part}") for part in ("to_q", "to_k", "to_v"))
    y = attention(g, options, q, k, v, f"{path}.attention", 1, channels)
    y = linear(g, y, f"{path}.to_out.0")
    if options.height and options.width:
        shape = g.integers([0, options.height, options.width, channels])
    else:
        shape = g.add("Shape", picture, name=f"{path}.shape")
    return g.add("Add", as_picture(g, y, shape, path), x, name=path)


def _tiny_decoder(g: Graph, x: str) -> str:
    # 3 tanh(x / 3) keeps a latent in ±3.
    x = g.add("Tanh", g.add("Div", x, g.number(3.0), name="third"), name="bounded")
    x = g.add("Mul", x, g.number(3.0), name="clamped")
    x = g.add("Relu", conv(g, x, "decoder.layers.0"), name="decoder.layers.1")
    last = max(int(name.split(".")[2]) for name in g.shapes if name.startswith("decoder.layers."))
    for k in range(2, last + 1):
        path = f"decoder.layers.{k}"
        # What has no weights between the first activation and the end doubles the sides.
        x = _tiny_layer(g, x, path) if g.has(path) else upsample(g, x, path)
    return g.add("Mul", x, g.number(255.0), name="pixels.scaled")


def _tiny_encoder(g: Graph, x: str) -> str:
    for k, path in enumerate(layers := g.children("encoder.layers")):
        between = 0 < k < len(layers) - 1 and not g.has(f"{path}.conv")
        x = conv(g, x, path, stride=2) if between else _tiny_layer(g, x, path)
    return x


def _tiny_layer(g: Graph, x: str, path: str) -> str:
    if not g.has(f"{path}.conv"):
        return conv(g, x, path)
    y = g.add("Relu", conv(g, x, f"{path}.conv.0"), name=f"{path}.conv.1")
    y = g.add("Relu", conv(g, y, f"{path}.conv.2"), name=f"{path}.conv.3")
    y = conv(g, y, f"{path}.conv.4")
    if g.has(f"{path}.skip"):
        x = conv(g, x, f"{path}.skip")
    return g.add("Relu", g.add("Add", y, x, name=f"{path}.sum"), name=path)
