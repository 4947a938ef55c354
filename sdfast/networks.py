"""The networks of a bundle: which there are, and whether each is given what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bundle import Context, Manifest, Network

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-fp16", "fp8")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
ONCE_A_REQUEST = (*TEXT_ENCODERS, "time_projection", "context_projection")
"""Those before the first step, which take little beside the steps."""
NETWORKS = (
    *ONCE_A_REQUEST,
    "unet",
    "unet_shallow",
    "unet_adapters",
    "vae_decoder",
    "vae_encoder",
    "preview_decoder",
    "controlnet",
    "t2i_adapter",
)
CONTROLS = ("controlnet", "t2i_adapter")
"""Each alone in a bundle of task "control"."""
DENOISERS = ("unet", "unet_shallow", "unet_adapters")
EIGHT_BITS = {
    "int8": (*DENOISERS, "vae_decoder"),
    "int8-fp16": (*DENOISERS, "vae_decoder"),
    "fp8": DENOISERS,
}
"""The precisions whose products are of eight bits, and the networks that can be in them: those
whose time counts. The rest of a network is fp32 in int8, and fp16 in the others, which are
TensorRT's."""
EXACT_OPERATORS = ("Softmax", "InstanceNormalization", "Cos", "Sin")
"""Operators that sum or exponentiate many values, where they are not one fused operator that
accumulates in float32 by itself: they are computed in float32 at half precision too."""
EXACT_NAMES = ("time_proj", "add_time_proj", "guidance", "sizes", "pixels", "unscaled")
"""What the names of other nodes begin with that are: angles up to 1000, whose sines float16 would
make noise of; pixels, of which 255 are told apart."""


def wrong(manifest: Manifest) -> Iterator[str]:
    """What keeps the networks of a manifest from working together, a sentence each."""
    networks, control = manifest.networks, manifest.task == "control"
    alone = [name for name in CONTROLS if name in networks] or [" or ".join(CONTROLS)]
    needed = alone[:1] if control else ("unet", "vae_decoder", "vae_encoder")
    if unknown := set(networks) - set(NETWORKS):
        yield f"networks has {', '.join(sorted(unknown))}; known: {', '.join(NETWORKS)}"
    if missing := [n for n in needed if n not in networks]:
        yield f"networks lacks {', '.join(missing)}"
    encoders = {name for name in TEXT_ENCODERS if name in networks}
    if not encoders and not control:
        yield "networks lacks a text encoder"
    if set(manifest.tokenizers) != encoders:
        yield "tokenizers must name the text encoders and nothing else"
    for name, network in networks.items():
        if network.precision not in PRECISIONS:
            yield f"precision of {name} must be one of {', '.join(PRECISIONS)}"
        if odd := set(network.inputs) - _GIVEN.get(name, set(network.inputs)):
            yield f"{name} reads {', '.join(sorted(odd))}, which this sdfast does not give"
    if not control and not missing and manifest.context is not None:
        yield from _wrong_inputs(networks, manifest.context)
        read = networks["unet"].inputs.get("latent")
        wanted = _CHANNELS.get(manifest.task, lambda own: own)(manifest.sizes.channels)
        if read is None or read.shape[1:2] != (wanted,):
            yield f"unet's latent must have {wanted} channels for task {manifest.task}"
        if "unet_shallow" in networks:
            yield from _wrong_parts(networks["unet"], networks["unet_shallow"])


# What a U-Net reads beside the noisy latents: a mask and a picture's latents, or those alone.
_CHANNELS = {"inpaint": lambda own: 2 * own + 1, "edit": lambda own: 2 * own}
_TOLD = {"pooled", "sizes", "guidance"}
_GIVEN = {
    "text_encoder": {"tokens"},
    "text_encoder_2": {"tokens"},
    "time_projection": {"timestep"} | _TOLD,
    "context_projection": {"context"},
    "unet": {"latent", "timestep", "time", "context", "keys_values"} | _TOLD,
    "unet_shallow": {"latent", "features", "timestep", "time", "context", "keys_values"} | _TOLD,
    "vae_decoder": {"latent"},
    "vae_encoder": {"image"},
    "preview_decoder": {"latent"},
    "t2i_adapter": {"condition"},
}  # what the runtime can give each network that it runs


def _wrong_inputs(networks: Mapping[str, Network], context: Context) -> Iterator[str]:
    """Of the U-Net and the networks that run before it."""
    read = set(networks["unet"].inputs)
    for plain, hoisted, network in (
        ("timestep", "time", "time_projection"),
        ("context", "keys_values", "context_projection"),
    ):
        if len(read & {plain, hoisted}) != 1:
            yield f"unet must read {plain} or, hoisted, {hoisted}"
        if (hoisted in read) != (network in networks):
            yield f"unet must read {hoisted} where there is {network}, which writes it, or neither"
    before = networks.get("time_projection", networks["unet"])
    inputs = {**before.inputs, **networks["unet"].inputs}
    if "sizes" in inputs and inputs["sizes"].shape[1:] not in ((5,), (6,)):
        yield "sizes must be 5 or 6 numbers"
    if "pooled" in inputs and inputs["pooled"].shape[1:] != (context.pooled,):
        yield "the unet's pooled is not of context.pooled's width"
    written = [networks[name].outputs for name in TEXT_ENCODERS if name in networks]
    for outputs in written:
        hidden, whole = outputs.get("hidden"), outputs.get("context")
        if hidden and not (whole and hidden.shape[2:] == whole.shape[1:]):
            yield "hidden must be contexts, one for each layer that can be left out"
    widths = [outputs["context"].shape[-1] or 0 for outputs in written if "context" in outputs]
    if sum(widths) != context.width:
        yield "the text encoders' contexts are not context.width wide together"
    pooled = [outputs["pooled"].shape[-1] for outputs in written if "pooled" in outputs]
    if pooled != ([] if context.pooled is None else [context.pooled]):
        yield "one text encoder must write pooled of context.pooled's width, if that is not null"


def _wrong_parts(unet: Network, shallow: Network) -> Iterator[str]:
    """Of the U-Net and its outermost part: they are run on the same tensors."""
    features = unet.outputs.get("features")
    if features is None or shallow.inputs.get("features") != features:
        yield "unet_shallow must read the features that unet writes"
    others = {name: spec for name, spec in shallow.inputs.items() if name != "features"}
    if "latent" not in others or not others.items() <= unet.inputs.items():
        yield "unet_shallow must read latent, and nothing but features that unet does not read"
    if shallow.outputs != {"noise": unet.outputs.get("noise")}:
        yield "unet_shallow must write the noise that unet writes"
