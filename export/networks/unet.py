"""The U-Net of Stable Diffusion 1, 2 and XL and their ControlNets, in diffusers' naming.

Where layers are is read from the weights' names; what they are, from the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph import Graph
from . import Options, conditions
from .layers import (
    as_picture,
    as_tokens,
    attention,
    conv,
    group_norm,
    layer_norm,
    linear,
    self_attention,
    silu,
    upsample,
)


@dataclass(frozen=True)
class Shared:
    """What every layer reads.

    times: a ResNet block's path → its projected time, [R, C, 1, 1]
    keys_values: a cross-attention's path → its keys and values, [R, n, C] each
    image_keys_values: the same for the tokens of an image prompt, [R, m, C] each; or none
    """

    config: Mapping[str, Any]
    options: Options
    times: Mapping[str, str]
    keys_values: Mapping[str, tuple[str, str]]
    image_keys_values: Mapping[str, tuple[str, str]]


def unet(
    shapes: Mapping[str, Sequence[int]],
    config: Mapping[str, Any],
    options: Options,
    pooled: int = 0,
    adapters: bool = False,
) -> Graph:
    """latent, timestep or time, context or keys_values, … → noise [R, 4, h, w].

    pooled: the width of the pooled text where the model takes it; 0 for SDXL base's
    adapters: also takes ControlNet's residuals, residual_0 … and residual_mid, each added to the
        output of its layer, and image_keys_values [R, m, K], tokens that every cross-attention
        reads beside the text's (arXiv:2308.06721). A residual [1, 1, 1, 1] of 0, and one token of
        zeros, change nothing.
    """
    conditions.check(config)
    g = Graph(shapes)
    latent = g.input("latent", "f32", ["rows", config["in_channels"], *_sides(options)])
    shared = _shared(g, config, options, pooled, adapters)
    x, skips = _down(g, shared, conv(g, latent, "conv_in"))
    x = _mid(g, shared, x)
    if adapters:
        residuals = [_residual(g, f"residual_{k}") for k in range(len(skips))]
        pairs = zip(skips, residuals, strict=True)
        skips = [g.add("Add", skip, r, name=f"{r}.added") for skip, r in pairs]
        x = g.add("Add", x, _residual(g, "residual_mid"), name="residual_mid.added")
    x = _up(g, shared, x, skips)
    groups, epsilon = config["norm_num_groups"], config["norm_eps"]
    x = silu(g, group_norm(g, options, x, "conv_norm_out", groups, epsilon), "conv_norm_out")
    x = conv(g, x, "conv_out")
    g.output("noise", "f32", ["rows", config["out_channels"], *_sides(options)], x)
    return g


def controlnet(
    shapes: Mapping[str, Sequence[int]],
    config: Mapping[str, Any],
    options: Options,
    pooled: int = 0,
) -> Graph:
    """latent, timestep, context, …, condition [R, 3, 8h, 8w] in 0 … 1, scale [R] → residual_0 … and
    residual_mid (arXiv:2302.05543)."""
    conditions.check(config)
    g = Graph(shapes)
    latent = g.input("latent", "f32", ["rows", config["in_channels"], *_sides(options)])
    shared = _shared(g, config, options, pooled, adapters=False)
    channels = config.get("conditioning_channels") or 3
    condition = g.input("condition", "f32", ["rows", channels, "image_height", "image_width"])
    scale = g.input("scale", "f32", ["rows"])
    scale = g.add("Reshape", scale, g.integers([-1, 1, 1, 1]), name="scale.sides")
    if config.get("controlnet_conditioning_channel_order") == "bgr":
        order = g.integers(range(channels)[::-1])
        condition = g.add("Gather", condition, order, name="condition.bgr", axis=1)
    x = conv(g, latent, "conv_in")
    x = g.add("Add", x, _embedded(g, condition), name="conditioned")
    x, skips = _down(g, shared, x)
    x = _mid(g, shared, x)
    heads = zip(skips, g.children("controlnet_down_blocks"), strict=True)
    for k, (skip, path) in enumerate(heads):
        _give_residual(g, conv(g, skip, path), scale, f"residual_{k}")
    _give_residual(g, conv(g, x, "controlnet_mid_block"), scale, "residual_mid")
    return g


def skips(g: Graph) -> list[tuple[int, int]]:
    """The outputs that go to the other half: (channels, level), a level halving the sides."""
    found = [(g.shapes["conv_in.weight"][0], 0)]
    for level, block in enumerate(g.children("down_blocks")):
        paths = g.children(f"{block}.resnets")
        found += [(g.shapes[f"{path}.conv2.weight"][0], level) for path in paths]
        if g.has(f"{block}.downsamplers.0.conv"):
            found.append((found[-1][0], level + 1))
    return found


def _sides(options: Options) -> tuple[int | str, int | str]:
    return options.height or "height", options.width or "width"


def _residual(g: Graph, name: str) -> str:
    # Their shapes are those of the layers they are added to, or all ones.
    return g.input(name, "f32", [f"{name}.{axis}" for axis in ("rows", "channels", "h", "w")])


def _give_residual(g: Graph, x: str, scale: str, name: str) -> None:
    scaled = g.add("Mul", x, scale, name=f"{name}.scaled")
    g.output(name, "f32", ["rows", f"{name}.channels", f"{name}.h", f"{name}.w"], scaled)


def _embedded(g: Graph, condition: str) -> str:
    path = "controlnet_cond_embedding"
    x = silu(g, conv(g, condition, f"{path}.conv_in"), f"{path}.conv_in")
    for k, block in enumerate(g.children(f"{path}.blocks")):
        x = silu(g, conv(g, x, block, stride=1 + k % 2), block)
    return conv(g, x, f"{path}.conv_out")


def _shared(
    g: Graph, config: Mapping[str, Any], options: Options, pooled: int, adapters: bool
) -> Shared:
    times = conditions.times(g, config, options, pooled)
    modules = conditions.cross_attentions(g)
    keys_values = conditions.keys_values(g, options, modules)
    images = (
        conditions.split_pairs(g, "image_keys_values", "image_tokens", modules) if adapters else {}
    )
    return Shared(config, options, times, keys_values, images)


def _down(g: Graph, shared: Shared, x: str) -> tuple[str, list[str]]:
    skips = [x]
    for level, block in enumerate(g.children("down_blocks")):
        transformers = g.children(f"{block}.attentions")
        for k, path in enumerate(g.children(f"{block}.resnets")):
            x = _resnet(g, shared, x, path)
            if transformers:
                x = _transformer(g, shared, x, transformers[k], level)
            skips.append(x)
        if g.has(f"{block}.downsamplers.0.conv"):
            x = conv(g, x, f"{block}.downsamplers.0.conv", stride=2)
            skips.append(x)
    return x, skips


def _mid(g: Graph, shared: Shared, x: str) -> str:
    first, *others = g.children("mid_block.resnets")
    level = len(g.children("down_blocks")) - 1
    x = _resnet(g, shared, x, first)
    for k, path in enumerate(others):
        x = _transformer(g, shared, x, f"mid_block.attentions.{k}", level)
        x = _resnet(g, shared, x, path)
    return x


def _up(g: Graph, shared: Shared, x: str, skips: Sequence[str]) -> str:
    left = list(skips)
    blocks = g.children("up_blocks")
    for k, block in enumerate(blocks):
        transformers = g.children(f"{block}.attentions")
        for j, path in enumerate(g.children(f"{block}.resnets")):
            x = g.add("Concat", x, left.pop(), name=f"{path}.input", axis=1)
            x = _resnet(g, shared, x, path)
            if transformers:
                x = _transformer(g, shared, x, transformers[j], len(blocks) - 1 - k)
        if g.has(f"{block}.upsamplers.0.conv"):
            path = f"{block}.upsamplers.0"
            x = conv(g, upsample(g, x, path), f"{path}.conv")
    return x


def _resnet(g: Graph, shared: Shared, x: str, path: str) -> str:
    config, options = shared.config, shared.options
    groups, epsilon = config["norm_num_groups"], config["norm_eps"]
    y = silu(g, group_norm(g, options, x, f"{path}.norm1", groups, epsilon), f"{path}.norm1")
    y = conv(g, y, f"{path}.conv1")
    y = g.add("Add", y, shared.times[path], name=f"{path}.timed")
    y = silu(g, group_norm(g, options, y, f"{path}.norm2", groups, epsilon), f"{path}.norm2")
    y = conv(g, y, f"{path}.conv2")
    if g.has(f"{path}.conv_shortcut"):
        x = conv(g, x, f"{path}.conv_shortcut")
    return g.add("Add", x, y, name=path)


def _transformer(g: Graph, shared: Shared, x: str, path: str, level: int) -> str:
    """[B, C, h, w] → the same; each latent a token of `C` channels."""
    config, options = shared.config, shared.options
    channels = g.shapes[f"{path}.norm.weight"][0]
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    heads = heads if isinstance(heads, int) else heads[level]
    y = group_norm(g, options, x, f"{path}.norm", config["norm_num_groups"], 1e-6)
    as_conv = len(g.shapes[f"{path}.proj_in.weight"]) == 4
    if as_conv:
        y = conv(g, y, f"{path}.proj_in")
    y, picture = as_tokens(g, y, path, channels)
    if not as_conv:
        y = linear(g, y, f"{path}.proj_in")
    for block in g.children(f"{path}.transformer_blocks"):
        y = _transformer_block(g, shared, y, block, heads)
    if not as_conv:
        y = linear(g, y, f"{path}.proj_out")
    if options.height and options.width:
        shape = g.integers([0, options.height >> level, options.width >> level, channels])
    else:
        shape = g.add("Shape", picture, name=f"{path}.shape")
    y = as_picture(g, y, shape, path)
    if as_conv:
        y = conv(g, y, f"{path}.proj_out")
    return g.add("Add", y, x, name=path)


def _transformer_block(g: Graph, shared: Shared, x: str, path: str, heads: int) -> str:
    options = shared.options
    y = layer_norm(g, x, f"{path}.norm1")
    y = self_attention(g, options, y, f"{path}.attn1", heads, ("to_q", "to_k", "to_v"), "to_out.0")
    x = g.add("Add", y, x, name=f"{path}.attended")
    y = layer_norm(g, x, f"{path}.norm2")
    x = g.add("Add", _cross_attention(g, shared, y, f"{path}.attn2", heads), x, name=f"{path}.told")
    y = layer_norm(g, x, f"{path}.norm3")
    # GEGLU, arXiv:2002.05202. Two products where the checkpoint has one: nothing to split after,
    # and backends compute the rest as they write the products.
    proj = f"{path}.ff.net.0.proj"
    half = g.shapes[f"{proj}.weight"][0] // 2
    value = linear(g, y, f"{path}.ff.value", [proj], rows=(0, half))
    gate = linear(g, y, f"{path}.ff.gate", [proj], rows=(half, 2 * half))
    y = g.add("Mul", value, g.add("Gelu", gate, name=f"{path}.ff.gelu"), name=f"{path}.ff.net.0")
    return g.add("Add", linear(g, y, f"{path}.ff.net.2"), x, name=path)


def _cross_attention(g: Graph, shared: Shared, x: str, path: str, heads: int) -> str:
    options, width = shared.options, g.shapes[f"{path}.to_q.weight"][0]
    q = linear(g, x, f"{path}.to_q")
    k, v = shared.keys_values[path]
    y = attention(g, options, q, k, v, f"{path}.attention", heads, width)
    if path in shared.image_keys_values:
        k, v = shared.image_keys_values[path]
        image = attention(g, options, q, k, v, f"{path}.image_attention", heads, width)
        y = g.add("Add", y, image, name=f"{path}.with_image")
    return linear(g, y, f"{path}.to_out.0")
