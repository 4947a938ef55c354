"""What a U-Net reads of the time and the prompt: inside of its graph, or in networks of their own.

What depends on the prompt or the time alone is the same for every latent. Hoisted, it is two small
networks beside the U-Net, which run once a prompt and once a program, and inputs of the U-Net.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from ...errors import CheckpointError
from ..graph import Graph
from . import Options
from .layers import gemm, linear, silu, sinusoids

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
# Whole numbers above 0, or lists of them; None where a key stands for another.
COUNTS = ("addition_time_embed_dim", "attention_head_dim", "norm_num_groups", "num_attention_heads")
NUMBERS = ("freq_shift", "norm_eps")
BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}


def check(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a configuration that no family of Stable Diffusion has."""
    for key, allowed in ALLOWED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise CheckpointError(
                f"the U-Net's {key} is {config[key]!r}; only {allowed[0]!r} can be exported"
            )
    for key in COUNTS:
        value = config.get(key)
        for count in value if isinstance(value, list | tuple) else [value]:
            if count is not None and (type(count) is not int or count < 1):
                raise CheckpointError(
                    f"the U-Net's {key} is {value!r}; it must be a whole number above 0"
                )
    for key in NUMBERS:
        if type(config.get(key, 0)) not in (int, float):
            raise CheckpointError(f"the U-Net's {key} is {config[key]!r}; it must be a number")
    for key in ("down_block_types", "up_block_types"):
        if not set(config.get(key) or ()) <= BLOCKS:
            odd = sorted(set(config[key]) - BLOCKS)
            raise CheckpointError(f"the U-Net has blocks that cannot be exported: {', '.join(odd)}")


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


def _blocks(g: Graph) -> list[str]:
    return [*g.children("down_blocks"), "mid_block", *g.children("up_blocks")]


def _width(g: Graph, modules: Sequence[str]) -> int:
    return sum(g.shapes[f"{module}.weight"][0] for module in modules)


def times(
    g: Graph, config: Mapping[str, Any], options: Options, pooled: int, paths: Sequence[str]
) -> dict[str, str]:
    """The projected time of these ResNet blocks, [R, C, 1, 1] each."""
    if options.hoisted_time:
        widths = {path: _width(g, [f"{path}.time_emb_proj"]) for path in resnets(g)}
        time = g.input("time", "f32", ["rows", sum(widths.values())])
        column = g.add(
            "Reshape", time, g.integers([0, sum(widths.values()), 1, 1]), name="time.sides"
        )
        names = {path: f"{path}.time" for path in paths}
        return _parts(g, column, widths, names, axis=1)
    embedded = _embedded_time(g, config, pooled)
    times = {}
    for path in paths:
        y = gemm(g, embedded, f"{path}.time_emb_proj")
        sides = g.integers([0, _width(g, [f"{path}.time_emb_proj"]), 1, 1])
        times[path] = g.add("Reshape", y, sides, name=f"{path}.time")
    return times


def _parts(
    g: Graph, whole: str, widths: Mapping[str, int], names: Mapping[str, str], axis: int
) -> dict[str, str]:
    """Those parts of `whole` along an axis that `names` has. widths: of all that lie in it."""
    if len(names) == len(widths):
        sizes = g.integers(list(widths.values()))
        split = g.split("Split", whole, sizes, names=list(names.values()), axis=axis)
        return dict(zip(names, split, strict=True))
    ends = dict(zip(widths, accumulate(widths.values()), strict=True))
    made = {}
    for part, name in names.items():
        bounds = (g.integers([side]) for side in (ends[part] - widths[part], ends[part], axis))
        made[part] = g.add("Slice", whole, *bounds, name=name)
    return made


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


def keys_values(g: Graph, options: Options, modules: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The keys and values of the prompt of these cross-attentions, [R, n, C] each."""
    if not modules:
        return {}
    if options.hoisted_context:
        return pairs(g, "keys_values", "tokens", modules)
    context = _context(g, [f"{modules[0]}.to_k"])
    return {m: (linear(g, context, f"{m}.to_k"), linear(g, context, f"{m}.to_v")) for m in modules}


def pairs(g: Graph, name: str, tokens: str, modules: Sequence[str]) -> dict[str, tuple[str, str]]:
    """These modules' keys and values out of the input `name` [R, tokens, K], which has all."""
    every = [(m, part) for m in cross_attentions(g) for part in "kv"]
    widths = {f"{m}.{name}.{part}": _width(g, [f"{m}.to_{part}"]) for m, part in every}
    whole = g.input(name, "f32", ["rows", tokens, sum(widths.values())])
    names = [f"{m}.{name}.{part}" for m in modules for part in "kv"]
    found = list(_parts(g, whole, widths, {n: n for n in names}, axis=2).values())
    return dict(zip(modules, zip(found[::2], found[1::2], strict=True), strict=True))
