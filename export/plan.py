"""Which networks a checkpoint becomes: their graphs, and what they must compute.

A component (a U-Net) becomes one or several networks (the U-Net, and the projections hoisted out of
it), which share its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import NETWORKS
from .components import Checkpoint, Component
from .graph import Graph
from .networks import PLAIN, Options, conditions, t2i_adapter, text_encoder, unet, vae

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Planned:
    """A network to export.

    name: in the bundle
    graph, plain: as the options have it, and with every option off
    shapes(batch, height, width): of the inputs for latents of those sides
    reference(module, inputs): what the outputs must be, by the component's module
    """

    name: str
    graph: Graph
    plain: Graph
    shapes: Callable[[int, int, int], Mapping[str, tuple[int, ...]]]
    reference: Callable[[Any, Values], Values]


def plan(
    checkpoint: Checkpoint, options: Options, networks: Collection[str] = NETWORKS
) -> dict[str, list[Planned]]:
    """Those of the networks that the checkpoint has, by the component that they come from, in the
    order in which they run."""
    found: dict[str, list[Planned]] = {}
    for name, component in checkpoint.components.items():
        if name.startswith("text_encoder"):
            found[name] = [_text_encoder(name, component, options, checkpoint.family)]
        elif name == "unet":
            shallow = "unet_shallow" in networks
            found[name] = _unet(component, options, _pooled(checkpoint), shallow)
        elif name == "controlnet":
            found[name] = [_controlnet(component, options, _pooled(checkpoint))]
        elif name == "t2i_adapter":
            found[name] = [_t2i_adapter(component)]
        elif name in ("vae", "preview"):
            found[name] = _vae(name, component, options)
    kept = {part: [p for p in made if p.name in networks] for part, made in found.items()}
    return {part: made for part, made in kept.items() if made}


def shapes_of(component: Component) -> dict[str, tuple[int, ...]]:
    """Its weights' shapes."""
    return {name: tuple(weight.shape) for name, weight in component.weights.items()}


def _pooled(checkpoint: Checkpoint) -> int:
    """The width of the pooled text, 0 where there is none."""
    second = checkpoint.components.get("text_encoder_2")
    return int(second.config["projection_dim"]) if second else 0


def _text_encoder(name: str, component: Component, options: Options, family: str) -> Planned:
    shapes, config = shapes_of(component), component.config
    penultimate = family.startswith("sdxl")
    graphs = [
        text_encoder.text_encoder(shapes, config, o, penultimate=penultimate)
        for o in (options, PLAIN)
    ]

    def reference(module: nn.Module, inputs: Values) -> Values:
        found = module(inputs["tokens"].long(), output_hidden_states=True)
        context, hidden = found.last_hidden_state, list(found.hidden_states)
        if penultimate:
            hidden.pop()
            context = hidden[-1]
        hidden = hidden[-2::-1]
        if not penultimate:
            named = dict(module.named_modules())
            (norm,) = (found for path, found in named.items() if path.endswith("final_layer_norm"))
            hidden = [norm(state) for state in hidden]
        return (
            {"context": context}
            | ({"hidden": torch.stack(hidden, 1)} if hidden else {})
            | ({"pooled": found.text_embeds} if hasattr(found, "text_embeds") else {})
        )

    length = config["max_position_embeddings"]
    return Planned(name, *graphs, lambda batch, h, w: {"tokens": (batch, length)}, reference)


def _unet(component: Component, options: Options, pooled: int, shallow: bool) -> list[Planned]:
    shapes, config = shapes_of(component), component.config
    made = []
    if options.hoisted_time:
        graph = conditions.time_projection(shapes, config, pooled)
        paths = [f"{path}.time_emb_proj" for path in conditions.resnets(graph)]
        made.append(_projection("time_projection", graph, "time", paths))
    if options.hoisted_context:
        graph = conditions.context_projection(shapes, config)
        modules = conditions.cross_attentions(graph)
        paths = [f"{path}.{part}" for path in modules for part in ("to_k", "to_v")]
        made.append(_projection("context_projection", graph, "keys_values", paths))
    graphs = [unet.unet(shapes, config, o, pooled, features=shallow) for o in (options, PLAIN)]
    outer = unet.outer_resnet(graphs[0])
    reference = partial(_with_features, *outer) if shallow else _unet_reference
    made.append(_denoiser("unet", graphs, reference))
    if shallow:
        graphs = [unet.shallow(shapes, config, o, pooled) for o in (options, PLAIN)]
        made.append(_denoiser("unet_shallow", graphs, partial(_from_features, *outer)))
    graphs = [unet.unet(shapes, config, o, pooled, adapters=True) for o in (options, PLAIN)]
    made.append(_denoiser("unet_adapters", graphs, _unet_reference))
    return made


def _denoiser(
    name: str, graphs: list[Graph], reference: Callable[[Any, Values], Values]
) -> Planned:
    graph, plain = graphs
    return Planned(name, graph, plain, _sides(plain), reference)


def _projection(name: str, graph: Graph, output: str, paths: list[str]) -> Planned:
    def reference(module: nn.Module, inputs: Values) -> Values:
        with outputs(module, paths) as seen:
            _call(module, _unhoisted(module, inputs))
        return {output: torch.cat([seen[path] for path in paths], -1)}

    return Planned(name, graph, graph, _sides(graph), reference)


def _unet_reference(module: nn.Module, inputs: Values) -> Values:
    return {"noise": _call(module, inputs).sample}


def _with_features(resnet: str, channels: int, module: nn.Module, inputs: Values) -> Values:
    seen: Values = {}

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen["features"] = given[0][:, :channels]

    with _before(module, resnet, keep):
        return _unet_reference(module, inputs) | seen


def _from_features(resnet: str, channels: int, module: nn.Module, inputs: Values) -> Values:
    def replaced(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = given
        return torch.cat([inputs["features"], x[:, channels:]], 1), *others

    with _before(module, resnet, replaced):
        return _unet_reference(module, _unhoisted(module, inputs))


@contextmanager
def _before(module: nn.Module, path: str, hook: Callable[..., Any]) -> Iterator[None]:
    """Calls `hook` with what the module at `path` is given, before it runs."""
    handle = module.get_submodule(path).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _controlnet(component: Component, options: Options, pooled: int) -> Planned:
    # It runs beside many U-Nets: what it reads of prompt and time is what they read unhoisted.
    options = replace(options, hoisted_context=False, hoisted_time=False)
    shapes, config = shapes_of(component), component.config
    graphs = [unet.controlnet(shapes, config, o, pooled) for o in (options, PLAIN)]

    def reference(module: nn.Module, inputs: Values) -> Values:
        found = _call(module, inputs)
        scale = inputs["scale"].reshape(-1, 1, 1, 1)
        residuals = {f"residual_{k}": r * scale for k, r in enumerate(found.down_block_res_samples)}
        return residuals | {"residual_mid": found.mid_block_res_sample * scale}

    return Planned("controlnet", *graphs, _sides(graphs[0]), reference)


def _t2i_adapter(component: Component) -> Planned:
    graph = t2i_adapter.t2i_adapter(shapes_of(component), component.config)
    names, channels = t2i_adapter.features(component.config), component.config["in_channels"]

    def reference(module: nn.Module, inputs: Values) -> Values:
        return dict(zip(names, module(inputs["condition"]), strict=True))

    return Planned(
        "t2i_adapter",
        graph,
        graph,
        lambda batch, h, w: {"condition": (batch, channels, 8 * h, 8 * w)},
        reference,
    )


def _vae(name: str, component: Component, options: Options) -> list[Planned]:
    shapes, config = shapes_of(component), component.config
    scale = vae.image_scale(config)

    def decoded(module: nn.Module, inputs: Values) -> Values:
        latent = inputs["latent"] / config["scaling_factor"] + (config.get("shift_factor") or 0)
        image = module.decode(latent, return_dict=False)[0]  # type: ignore[operator]
        pixels = (image / 2 + 0.5).clamp(0, 1) * 255
        return {"image": pixels.round().to(torch.uint8).permute(0, 2, 3, 1)}

    def encoded(module: nn.Module, inputs: Values) -> Values:
        found = module.encode(inputs["image"].permute(0, 3, 1, 2).float() / 127.5 - 1)  # type: ignore[operator]
        if hasattr(found, "latents"):
            return {"mean": found.latents, "logvar": torch.full_like(found.latents, -30.0)}
        return {"mean": found.latent_dist.mean, "logvar": found.latent_dist.logvar}

    graphs = [vae.decoder(shapes, config, o) for o in (options, PLAIN)]
    channels = config["latent_channels"]
    decoder = Planned(
        "vae_decoder" if name == "vae" else "preview_decoder",
        *graphs,
        lambda batch, h, w: {"latent": (batch, channels, h, w)},
        decoded,
    )
    if name == "preview":
        return [decoder]
    graphs = [vae.encoder(shapes, config, o) for o in (options, PLAIN)]
    encoder = Planned(
        "vae_encoder",
        *graphs,
        lambda batch, h, w: {"image": (batch, h * scale, w * scale, 3)},
        encoded,
    )
    return [decoder, encoder]


def _sides(graph: Graph) -> Callable[[int, int, int], Mapping[str, tuple[int, ...]]]:
    """The inputs' shapes with every row its own."""
    declared = graph.inputs()
    skips = unet.skips(graph)

    def shapes(batch: int, height: int, width: int) -> Mapping[str, tuple[int, ...]]:
        known: dict[str, int] = {
            "rows": batch,
            "height": height,
            "width": width,
            "tokens": 77,
            "image_tokens": 4,
        }
        known |= {"image_height": 8 * height, "image_width": 8 * width}
        for k, (channels, level) in [*enumerate(skips), ("mid", skips[-1])]:
            sides = (batch, channels, height >> level, width >> level)
            axes = (f"residual_{k}.{axis}" for axis in ("rows", "channels", "h", "w"))
            known |= dict(zip(axes, sides, strict=True))
        for place in unet.places(graph):
            sides = (batch, height >> place.level, width >> place.level)
            axes = (f"{place.input}.{axis}" for axis in ("rows", "h", "w"))
            known |= dict(zip(axes, sides, strict=True))
        return {
            name: tuple(known[side] if isinstance(side, str) else side for side in shape)
            for name, shape in declared.items()
        }

    return shapes


def _unhoisted(module: nn.Module, inputs: Values) -> Values:
    """A projection's inputs, and anything for what it does not read: a U-Net's whole inputs."""
    config: Any = module.config
    rows = len(next(iter(inputs.values())))
    side = 2 ** len(config.block_out_channels)  # two latents at the lowest level
    width = config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    whole = {
        "latent": torch.zeros(rows, config.in_channels, side, side),
        "timestep": torch.zeros(rows),
        "context": torch.zeros(rows, 1, width),
    }
    if config.addition_embed_type == "text_time":
        sizes = 6 if "sizes" not in inputs else inputs["sizes"].shape[1]
        pooled = config.projection_class_embeddings_input_dim
        pooled -= sizes * config.addition_time_embed_dim
        whole |= {"sizes": torch.zeros(rows, sizes), "pooled": torch.zeros(rows, pooled)}
    return whole | inputs


def _call(module: Any, inputs: Values) -> Any:
    """diffusers' call of a U-Net or ControlNet with our inputs."""
    added = None
    if "pooled" in inputs:
        added = {"text_embeds": inputs["pooled"], "time_ids": inputs["sizes"]}
    more: dict[str, Any] = {"added_cond_kwargs": added}
    if "guidance" in inputs:
        from diffusers import LatentConsistencyModelPipeline as Pipeline

        embed = Pipeline.get_guidance_scale_embedding
        width = module.config.time_cond_proj_dim
        more["timestep_cond"] = embed(None, inputs["guidance"], width)
    if "condition" in inputs:
        more["controlnet_cond"] = inputs["condition"]
    if "residual_mid" in inputs:
        count = sum(name.startswith("residual_") for name in inputs) - 1
        residuals = tuple(inputs[f"residual_{k}"] for k in range(count))
        more["down_block_additional_residuals"] = residuals
        more["mid_block_additional_residual"] = inputs["residual_mid"]
        added = [value for name, value in inputs.items() if name.startswith("adapter_")]
        more["down_intrablock_additional_residuals"] = added
    return module(inputs["latent"], inputs["timestep"], inputs["context"], **more)


@contextmanager
def outputs(module: nn.Module, paths: list[str]) -> Any:
    """What these modules inside of `module` return while the block runs."""
    seen: Values = {}

    def hook(path: str) -> Callable[[Any, Any, Tensor], None]:
        return lambda module, given, output: seen.__setitem__(path, output)

    handles = [module.get_submodule(p).register_forward_hook(hook(p)) for p in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
