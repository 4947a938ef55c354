"""What the tools that write LoRA files call the layers of a model.

A layer is `component.module`, by diffusers' names: unet.mid_block.attentions.0.proj_in. kohya's
tools write a model's own names with _ for each dot, SDXL's also those of Stability's code; older
diffusers' have other endings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

Place = tuple[str, str]
"""A component and a layer of it."""

PREFIXES = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
"""The components that LoRA files are for, with the beginnings of their layers' names in kohya's."""

_RESNET = (
    (r"\.norm1\b", ".in_layers.0"),
    (r"\.conv1\b", ".in_layers.2"),
    (r"\.norm2\b", ".out_layers.0"),
    (r"\.conv2\b", ".out_layers.3"),
    (r"\.time_emb_proj\b", ".emb_layers.1"),
    (r"\.conv_shortcut\b", ".skip_connection"),
)
_EMBEDDINGS = (
    (r"^time_embedding\.linear_1\b", "time_embed.0"),
    (r"^time_embedding\.linear_2\b", "time_embed.2"),
    (r"^add_embedding\.linear_1\b", "label_emb.0.0"),
    (r"^add_embedding\.linear_2\b", "label_emb.0.2"),
    (r"^conv_in\b", "input_blocks.0.0"),
    (r"^conv_norm_out\b", "out.0"),
    (r"^conv_out\b", "out.2"),
)
_OLDER = {
    "unet": (
        (".processor.", "."),
        *((f".to_{x}_lora.", f".to_{x}.lora.") for x in "qkv"),
        (".to_out_lora.", ".to_out.0.lora."),
        (".to_out.lora_magnitude", ".to_out.0.lora_magnitude"),
        (".lora.up.", ".lora_B."),
        (".lora.down.", ".lora_A."),
    ),
    "text": (
        (".processor.", "."),
        *((f".to_{x}_lora.", f".{x}_proj.lora.") for x in "qkv"),
        *((f".to_{x}.lora_magnitude", f".{x}_proj.lora_magnitude") for x in "qkv"),
        (".to_out_lora.", ".out_proj.lora."),
        (".to_out.lora_magnitude", ".out_proj.lora_magnitude"),
        (".lora_linear_layer.", ".lora."),
        (".lora.up.", ".lora_B."),
        (".lora.down.", ".lora_A."),
    ),
}


def todays(tensor: str) -> str:
    """The name of a file's tensor as PEFT has it today; kohya's stay as they are."""
    if tensor.startswith("lora_"):
        return tensor
    for old, new in _OLDER["text" if tensor.startswith("text_encoder") else "unet"]:
        tensor = tensor.replace(old, new)
    return tensor


def stabilitys(name: str, names: Collection[str], each: int) -> str:
    """diffusers' name of a part of a U-Net as Stability's code has it.

    names: of all parts; each: blocks that a level has there, its sampler counted in
    """
    for pattern, new in (*_EMBEDDINGS, *(_RESNET if ".resnets." in name else ())):
        name = re.sub(pattern, new, name)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        number = 2 * int(found[2]) + (found[1] == "attentions")
        return f"middle_block.{number}.{found[3]}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    if found is None:
        return name
    way, level, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * each}.0.{re.sub('^conv', 'op', rest)}"
    if kind == "upsamplers":
        attends = any(n.startswith(f"up_blocks.{level}.attentions.") for n in names)
        return f"output_blocks.{level * each + each - 1}.{2 if attends else 1}.{rest}"
    block = level * each + number + (way == "down")
    place = "input_blocks" if way == "down" else "output_blocks"
    return f"{place}.{block}.{int(kind == 'attentions')}.{rest}"


def known(layers: Mapping[str, Collection[str]]) -> dict[str, Place]:
    """Every name that a file may have for one of the layers, which are given by component."""
    found: dict[str, Place] = {}
    for component, prefixes in PREFIXES.items():
        modules = layers.get(component, ())
        for module in modules:
            place = component, module
            for name in _names(component, module):
                found[f"{component}.{name}"] = place
                found |= {prefix + name.replace(".", "_"): place for prefix in prefixes}
    unet = layers.get("unet", ())
    each = 1 + len({m.split(".")[3] for m in unet if m.startswith("down_blocks.0.resnets.")})
    for module in unet:
        # Older diffusers' files hold a U-Net alone, whose name is left out.
        found.setdefault(module, ("unet", module))
        theirs = stabilitys(module, unet, each).replace(".", "_")
        found.setdefault(f"lora_unet_{theirs}", ("unet", module))
    return found


def _names(component: str, module: str) -> tuple[str, ...]:
    """transformers' text encoders have had text_model. before their layers or not."""
    if component == "unet":
        return (module,)
    bare = module.removeprefix("text_model.")
    return bare, f"text_model.{bare}"
