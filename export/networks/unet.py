"""The U-Net of Stable Diffusion 1, 2 and XL and their ControlNets, in diffusers' naming.

Where layers are is read from the weights' names; what they are, from the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
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
from .t2i_adapter import feature

OUTER = 1
"""Layers of the up half that unet_shallow has, counted from the end: at most those of its last
block. With each more, one more of the down half, whose output it reads, is run at cached steps."""
_MID = "mid_block"


@dataclass(frozen=True)
class Layer:
    """A ResNet block and what follows it.

    transformer: the path of its transformer, if any
    sampler: the path of the down- or upsampler, after the last layer of a block that has one
    level: a level halves the sides of the one before
    """

    resnet: str
    transformer: str | None
    sampler: str | None
    level: int


@dataclass(frozen=True)
class Shared:
    """What the layers read, by the layers that there are in the graph.

    times: a ResNet block's path → its projected time, [R, C, 1, 1]
    keys_values: a cross-attention's path → its keys and values, [R, n, C] each
    image_keys_values: the same for the tokens of an image prompt, [R, m, C] each; or none
    added: a module's path → the input that a T2I-Adapter adds to its output; or none
    """

    config: Mapping[str, Any]
    options: Options
    times: Mapping[str, str]
    keys_values: Mapping[str, tuple[str, str]]
    image_keys_values: Mapping[str, tuple[str, str]]
    added: Mapping[str, str]


def unet(
    shapes: Mapping[str, Sequence[int]],
    config: Mapping[str, Any],
    options: Options,
    pooled: int = 0,
    adapters: bool = False,
    features: bool = False,
) -> Graph:
    """latent, timestep or time, context or keys_values, … → noise [R, 4, h, w].

    features: also gives out features [R, C, h, w], what enters the last OUTER layers from below:
        all that `shallow` needs of the others
    pooled: the width of the pooled text where the model takes it; 0 for SDXL base's
    adapters: also takes ControlNet's residuals, residual_0 … and residual_mid, each added to the
        output of its layer, what T2I-Adapters add (`places`), and image_keys_values [R, m, K],
        tokens that every cross-attention reads beside the text's (arXiv:2308.06721). A residual
        [1, 1, 1, 1] and what an adapter adds, [1, C, 1, 1], of 0, and one token of zeros, change
        nothing.
    """
    conditions.check(config)
    g = Graph(shapes)
    latent = _latent(g, config, options)
    shared = _shared(g, config, options, pooled, adapters)
    skips = list(_down(g, shared, conv(g, latent, "conv_in")))
    x = _added(g, shared, _mid(g, shared, skips[-1]), _MID)
    if adapters:
        residuals = [_residual(g, f"residual_{k}") for k in range(len(skips))]
        pairs = zip(skips, residuals, strict=True)
        skips = [g.add("Add", skip, r, name=f"{r}.added") for skip, r in pairs]
        x = g.add("Add", x, _residual(g, "residual_mid"), name="residual_mid.added")
    layers = _up_layers(g)
    x = _up(g, shared, x, skips[OUTER:], layers[:-OUTER])
    if features:
        g.output("features", "f32", ["rows", _feature_channels(g), *_sides(options)], x)
        x = "features"
    x = _up(g, shared, x, skips[:OUTER], layers[-OUTER:])
    _give_noise(g, shared, x)
    return g


def shallow(
    shapes: Mapping[str, Sequence[int]],
    config: Mapping[str, Any],
    options: Options,
    pooled: int = 0,
) -> Graph:
    """The outermost part of `unet` alone: latent, features, and what its layers read of the rest →
    noise [R, 4, h, w].

    With features of the same latent the noise is that of `unet`; with those of a latent before it
    nearly so, for a fraction of the work, since they change slowly (DeepCache, arXiv:2312.00858).
    """
    conditions.check(config)
    g = Graph(shapes)
    latent = _latent(g, config, options)
    x = g.input("features", "f32", ["rows", _feature_channels(g), *_sides(options)])
    layers = _up_layers(g)[-OUTER:]
    read = [*_down_layers(g)[: OUTER - 1], *layers]
    shared = _shared(g, config, options, pooled, adapters=False, layers=read)
    skips = list(islice(_down(g, shared, conv(g, latent, "conv_in")), OUTER))
    _give_noise(g, shared, _up(g, shared, x, skips, layers))
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
    latent = _latent(g, config, options)
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
    skips = list(_down(g, shared, x))
    x = _mid(g, shared, skips[-1])
    heads = zip(skips, g.children("controlnet_down_blocks"), strict=True)
    for k, (skip, path) in enumerate(heads):
        _give_residual(g, conv(g, skip, path), scale, f"residual_{k}", path)
    last = "controlnet_mid_block"
    _give_residual(g, conv(g, x, last), scale, "residual_mid", last)
    return g


def skips(g: Graph) -> list[tuple[int, int]]:
    """The outputs that go to the other half: (channels, level), a level halving the sides."""
    found = [(g.shapes["conv_in.weight"][0], 0)]
    for layer in _down_layers(g):
        found.append((_channels(g, layer), layer.level))
        if layer.sampler:
            found.append((_channels(g, layer), layer.level + 1))
    return found


@dataclass(frozen=True)
class Place:
    """Where a T2I-Adapter adds: to the output of the module at `path`, of so many channels, whose
    sides are the latent's halved `level` times. input: what is added, [R, channels, h, w]"""

    path: str
    input: str
    channels: int
    level: int


def places(g: Graph) -> list[Place]:
    """Where T2I-Adapters add (arXiv:2302.08453): to each block of the down half, before it halves
    the sides if it has transformers and after that if not, as diffusers does; then to the middle.
    What goes to the other half has it too."""
    found: list[tuple[str, int, int]] = []
    for level, block in enumerate(g.children("down_blocks")):
        last = _layers(g, block, "downsamplers", level)[-1]
        halved = last.sampler is not None and last.transformer is None
        path = last.transformer or last.sampler or last.resnet
        found.append((path, _channels(g, last), level + halved))
    found.append((_MID, found[-1][1], len(found) - 1))
    return [Place(p, feature(k, at), channels, at) for k, (p, channels, at) in enumerate(found)]


def outer_resnet(g: Graph) -> tuple[str, int]:
    """The ResNet block that reads features first, and their channels; a skip's come after them."""
    return _up_layers(g)[-OUTER].resnet, _feature_channels(g)


def _feature_channels(g: Graph) -> int:
    return _channels(g, _up_layers(g)[-OUTER - 1])


def _channels(g: Graph, layer: Layer) -> int:
    return g.shapes[f"{layer.resnet}.conv2.weight"][0]


def _down_layers(g: Graph) -> list[Layer]:
    blocks = g.children("down_blocks")
    return [x for level, b in enumerate(blocks) for x in _layers(g, b, "downsamplers", level)]


def _up_layers(g: Graph) -> list[Layer]:
    blocks = g.children("up_blocks")
    levels = range(len(blocks))[::-1]
    return [x for k, b in zip(levels, blocks, strict=True) for x in _layers(g, b, "upsamplers", k)]


def _layers(g: Graph, block: str, samplers: str, level: int) -> list[Layer]:
    resnets, transformers = g.children(f"{block}.resnets"), g.children(f"{block}.attentions")
    sampler = f"{block}.{samplers}.0"
    return [
        Layer(
            path,
            transformers[k] if transformers else None,
            sampler if k == len(resnets) - 1 and g.has(f"{sampler}.conv") else None,
            level,
        )
        for k, path in enumerate(resnets)
    ]


def _latent(g: Graph, config: Mapping[str, Any], options: Options) -> str:
    return g.input("latent", "f32", ["rows", config["in_channels"], *_sides(options)])


def _give_noise(g: Graph, shared: Shared, x: str) -> None:
    config, options = shared.config, shared.options
    groups, epsilon = config["norm_num_groups"], config["norm_eps"]
    x = silu(g, group_norm(g, options, x, "conv_norm_out", groups, epsilon), "conv_norm_out")
    x = conv(g, x, "conv_out")
    g.output("noise", "f32", ["rows", config["out_channels"], *_sides(options)], x)


def _sides(options: Options) -> tuple[int | str, int | str]:
    return options.height or "height", options.width or "width"


def _residual(g: Graph, name: str) -> str:
    # Their shapes are those of the layers they are added to, or all ones.
    return g.input(name, "f32", [f"{name}.{axis}" for axis in ("rows", "channels", "h", "w")])


def _added(g: Graph, shared: Shared, x: str, path: str) -> str:
    """The output x of the module at `path`, with what a T2I-Adapter adds there, if anything."""
    name = shared.added.get(path)
    return x if name is None else g.add("Add", x, name, name=f"{name}.added")


def _give_residual(g: Graph, x: str, scale: str, name: str, path: str) -> None:
    scaled = g.add("Mul", x, scale, name=f"{name}.scaled")
    channels = g.shapes[f"{path}.weight"][0]
    g.output(name, "f32", ["rows", channels, f"{name}.h", f"{name}.w"], scaled)


def _embedded(g: Graph, condition: str) -> str:
    path = "controlnet_cond_embedding"
    x = silu(g, conv(g, condition, f"{path}.conv_in"), f"{path}.conv_in")
    for k, block in enumerate(g.children(f"{path}.blocks")):
        x = silu(g, conv(g, x, block, stride=1 + k % 2), block)
    return conv(g, x, f"{path}.conv_out")


def _shared(
    g: Graph,
    config: Mapping[str, Any],
    options: Options,
    pooled: int,
    adapters: bool,
    layers: Iterable[Layer] | None = None,
) -> Shared:
    """What all layers read, or these."""
    resnets, modules = conditions.resnets(g), conditions.cross_attentions(g)
    if layers is not None:
        kept = [(layer.resnet, layer.transformer) for layer in layers]
        resnets = [r for r, _ in kept]
        modules = [m for m in modules if any(t and m.startswith(f"{t}.") for _, t in kept)]
    times = conditions.times(g, config, options, pooled, resnets)
    keys_values = conditions.keys_values(g, options, modules)
    images, added = {}, {}
    if adapters:
        images = conditions.pairs(g, "image_keys_values", "image_tokens", modules)
        for place in places(g):
            rows, h, w = (f"{place.input}.{axis}" for axis in ("rows", "h", "w"))
            added[place.path] = g.input(place.input, "f32", [rows, place.channels, h, w])
    return Shared(config, options, times, keys_values, images, added)


def _down(g: Graph, shared: Shared, x: str) -> Iterator[str]:
    """The outputs that go to the other half, each written to the graph when it is asked for."""
    yield x
    for layer in _down_layers(g):
        x = _added(g, shared, _layer(g, shared, x, layer), layer.transformer or layer.resnet)
        yield x
        if layer.sampler:
            x = conv(g, x, f"{layer.sampler}.conv", stride=2)
            x = _added(g, shared, x, layer.sampler)
            yield x


def _mid(g: Graph, shared: Shared, x: str) -> str:
    first, *others = g.children("mid_block.resnets")
    level = len(g.children("down_blocks")) - 1
    x = _resnet(g, shared, x, first)
    for k, path in enumerate(others):
        x = _transformer(g, shared, x, f"mid_block.attentions.{k}", level)
        x = _resnet(g, shared, x, path)
    return x


def _up(g: Graph, shared: Shared, x: str, skips: Sequence[str], layers: Sequence[Layer]) -> str:
    for layer, skip in zip(layers, reversed(skips), strict=True):
        x = g.add("Concat", x, skip, name=f"{layer.resnet}.input", axis=1)
        x = _layer(g, shared, x, layer)
        if layer.sampler:
            x = conv(g, upsample(g, x, layer.sampler), f"{layer.sampler}.conv")
    return x


def _layer(g: Graph, shared: Shared, x: str, layer: Layer) -> str:
    x = _resnet(g, shared, x, layer.resnet)
    if layer.transformer:
        x = _transformer(g, shared, x, layer.transformer, layer.level)
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
