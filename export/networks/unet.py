"""The U-Net of Stable Diffusion 1, 2 and XL and their ControlNets, in diffusers' naming.

Where layers are is read from the weights' names; what they are, from the configuration. With
hoisting on, what depends on the prompt or the time alone is two small networks beside the U-Net,
which run once a prompt and once a program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ..graph import Graph
from . import Options
from .layers import (
    attention,
    conv,
    gemm,
    group_norm,
    layer_norm,
    linear,
    self_attention,
    silu,
    sinusoids,
    upsample,
)

# What these graphs can compute: each key's values, of which the first is the default.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0, 1),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    # ControlNet
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
    "global_pool_conditions": (False,),
}
BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}


def check(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a configuration that no family of Stable Diffusion has."""
    for key, allowed in ALLOWED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise CheckpointError(
                f"the U-Net's {key} is {config[key]!r}; only {allowed[0]!r} can be exported"
            )
    for key in ("down_block_types", "up_block_types"):
        if not set(config.get(key) or ()) <= BLOCKS:
            odd = sorted(set(config[key]) - BLOCKS)
            raise CheckpointError(f"the U-Net has blocks that cannot be exported: {', '.join(odd)}")


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
    check(config)
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
    check(config)
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


def time_projection(
    shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any], pooled: int = 0
) -> Graph:
    """timestep, … → time [R, S], every ResNet block's projection of the embedded time."""
    check(config)
    g = Graph(shapes)
    modules = [f"{path}.time_emb_proj" for path in resnets(g)]
    y = gemm(g, _embedded_time(g, config, pooled), "time_emb_proj", modules)
    g.output("time", "f32", ["rows", _width(g, modules)], y)
    return g


def context_projection(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> Graph:
    """context [R, n, C] → keys_values [R, n, K], every cross-attention's keys and values."""
    check(config)
    g = Graph(shapes)
    modules = [f"{path}.{part}" for path in cross_attentions(g) for part in ("to_k", "to_v")]
    y = linear(g, _context(g, modules), "to_kv", modules)
    g.output("keys_values", "f32", ["rows", "tokens", _width(g, modules)], y)
    return g


def resnets(g: Graph) -> list[str]:
    """Every ResNet block, in the order of the flow."""
    return [path for block in _blocks(g) for path in g.children(f"{block}.resnets")]


def cross_attentions(g: Graph) -> list[str]:
    """Every cross-attention, in the order of the flow."""
    return [
        f"{block}.attn2"
        for stage in _blocks(g)
        for transformer in g.children(f"{stage}.attentions")
        for block in g.children(f"{transformer}.transformer_blocks")
    ]


def skips(g: Graph) -> list[tuple[int, int]]:
    """The outputs that go to the other half: (channels, level), a level halving the sides."""
    found = [(g.shapes["conv_in.weight"][0], 0)]
    for level, block in enumerate(g.children("down_blocks")):
        paths = g.children(f"{block}.resnets")
        found += [(g.shapes[f"{path}.conv2.weight"][0], level) for path in paths]
        if g.has(f"{block}.downsamplers.0.conv"):
            found.append((found[-1][0], level + 1))
    return found


def _blocks(g: Graph) -> list[str]:
    return [*g.children("down_blocks"), "mid_block", *g.children("up_blocks")]


def _width(g: Graph, modules: Sequence[str]) -> int:
    return sum(g.shapes[f"{module}.weight"][0] for module in modules)


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
    times = _times(g, config, options, pooled)
    modules = cross_attentions(g)
    keys_values = _keys_values(g, options, modules)
    images = _split_pairs(g, "image_keys_values", "image_tokens", modules) if adapters else {}
    return Shared(config, options, times, keys_values, images)


def _times(g: Graph, config: Mapping[str, Any], options: Options, pooled: int) -> dict[str, str]:
    paths = resnets(g)
    widths = [g.shapes[f"{path}.time_emb_proj.weight"][0] for path in paths]
    if options.hoisted_time:
        time = g.input("time", "f32", ["rows", sum(widths)])
        column = g.add("Reshape", time, g.integers([0, sum(widths), 1, 1]), name="time.sides")
        names = [f"{path}.time" for path in paths]
        split = g.split("Split", column, g.integers(widths), names=names, axis=1)
        return dict(zip(paths, split, strict=True))
    embedded = _embedded_time(g, config, pooled)
    times = {}
    for path, width in zip(paths, widths, strict=True):
        y = gemm(g, embedded, f"{path}.time_emb_proj")
        sides = g.integers([0, width, 1, 1])
        times[path] = g.add("Reshape", y, sides, name=f"{path}.time")
    return times


def _embedded_time(g: Graph, config: Mapping[str, Any], pooled: int) -> str:
    """silu of the embedding that all ResNet blocks project, [R, E]."""
    waves = {"flip": config["flip_sin_to_cos"], "shift": float(config["freq_shift"])}
    x = g.input("timestep", "f32", ["rows"])
    x = sinusoids(g, x, config["block_out_channels"][0], "time_proj", **waves)
    if g.has("time_embedding.cond_proj"):
        # The guidance that the model was distilled with (arXiv:2310.04378), times 1000.
        width = g.shapes["time_embedding.cond_proj.weight"][1]
        scale = g.input("guidance", "f32", ["rows"])
        scale = g.add("Mul", scale, g.number(1000.0), name="guidance.thousandths")
        scale = sinusoids(g, scale, width, "guidance_proj", flip=False, shift=1.0)
        x = g.add("Add", x, gemm(g, scale, "time_embedding.cond_proj"), name="time_proj.guided")
    x = silu(g, gemm(g, x, "time_embedding.linear_1"), "time_embedding.linear_1")
    x = gemm(g, x, "time_embedding.linear_2")
    if config.get("addition_embed_type") == "text_time":
        x = g.add("Add", x, _added(g, config, waves, pooled), name="time_embedding.added")
    return silu(g, x, "time_embedding")


def _added(g: Graph, config: Mapping[str, Any], waves: Mapping[str, Any], pooled: int) -> str:
    """SDXL's embedding of the pooled text and of the picture's sizes."""
    whole = g.shapes["add_embedding.linear_1.weight"][1]
    each = config["addition_time_embed_dim"]
    count = (whole - pooled) // each if pooled else 6  # 5 in the refiner
    text = g.input("pooled", "f32", ["rows", whole - count * each])
    sizes = g.input("sizes", "f32", ["rows", count])
    flat = g.add("Reshape", sizes, g.integers([-1]), name="sizes.flat")
    embedded = sinusoids(g, flat, each, "add_time_proj", **waves)
    rows = g.add("Reshape", embedded, g.integers([-1, count * each]), name="add_time_proj.rows")
    x = g.add("Concat", text, rows, name="add_embedding.input", axis=-1)
    x = silu(g, gemm(g, x, "add_embedding.linear_1"), "add_embedding.linear_1")
    return gemm(g, x, "add_embedding.linear_2")


def _context(g: Graph, modules: Sequence[str]) -> str:
    return g.input("context", "f32", ["rows", "tokens", g.shapes[f"{modules[0]}.weight"][1]])


def _keys_values(g: Graph, options: Options, modules: Sequence[str]) -> dict[str, tuple[str, str]]:
    if options.hoisted_context:
        return _split_pairs(g, "keys_values", "tokens", modules)
    context = _context(g, [f"{modules[0]}.to_k"])
    return {m: (linear(g, context, f"{m}.to_k"), linear(g, context, f"{m}.to_v")) for m in modules}


def _split_pairs(
    g: Graph, name: str, tokens: str, modules: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """The input `name` [R, tokens, K] as each module's keys and values."""
    widths = [g.shapes[f"{m}.to_k.weight"][0] for m in modules for _ in range(2)]
    whole = g.input(name, "f32", ["rows", tokens, sum(widths)])
    names = [f"{m}.{name}.{part}" for m in modules for part in "kv"]
    split = g.split("Split", whole, g.integers(widths), names=names, axis=2)
    return dict(zip(modules, zip(split[::2], split[1::2], strict=True), strict=True))


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
    y = g.add("Reshape", y, g.integers([0, channels, -1]), name=f"{path}.flat")
    y = g.add("Transpose", y, name=f"{path}.tokens", perm=[0, 2, 1])
    if not as_conv:
        y = linear(g, y, f"{path}.proj_in")
    for block in g.children(f"{path}.transformer_blocks"):
        y = _transformer_block(g, shared, y, block, heads)
    if not as_conv:
        y = linear(g, y, f"{path}.proj_out")
    y = g.add("Transpose", y, name=f"{path}.channels", perm=[0, 2, 1])
    if options.height and options.width:
        sides = g.integers([0, channels, options.height >> level, options.width >> level])
    else:
        sides = g.add("Shape", x, name=f"{path}.shape")
    y = g.add("Reshape", y, sides, name=f"{path}.sides")
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
    y = linear(g, y, f"{path}.ff.net.0.proj")
    names = [f"{path}.ff.value", f"{path}.ff.gate"]
    value, gate = g.split("Split", y, names=names, axis=-1, num_outputs=2)
    gate = g.add("Gelu", gate, name=f"{path}.ff.gelu")  # GEGLU, arXiv:2002.05202
    y = g.add("Mul", value, gate, name=f"{path}.ff.net.0")
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
