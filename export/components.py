"""What a checkpoint holds: components with the weights of their files, untouched until used."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from tokenizers import Tokenizer
from torch import nn

from ..errors import CheckpointError

PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Component:
    """One network of a checkpoint.

    kind: the class of diffusers or transformers whose network it is, as UNet2DConditionModel
    config: that class's configuration, complete
    weights: that class's state_dict names → tensors in the precision of the file, of which they are
        views where that can be (nothing is read before it is used)
    """

    kind: str
    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]

    def module(self) -> nn.Module:
        """The library's module in float32, to compare with. Raises CheckpointError."""
        module = blueprint(self.kind, self.config)
        widened = {name: weight.float() for name, weight in self.weights.items()}
        try:
            module.load_state_dict(widened, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{self.kind} cannot be loaded ({error})") from error
        return module.eval().requires_grad_(False)


@dataclass(frozen=True)
class Checkpoint:
    """A model: its components, noise schedule and tokenizers.

    source: what the user gave: a folder, a file, or a hub id and its commit, owner/name@commit
    family, task, prediction: one of bundle.FAMILIES, TASKS and PREDICTIONS
    components: by diffusers' names: text_encoder, text_encoder_2, unet, vae, controlnet; and
        t2i_adapter
    scheduler: diffusers' scheduler_config.json
    tokenizers: "tokenizer" and "tokenizer_2", padding as the model was trained with
    """

    source: str
    family: str
    task: str
    prediction: str
    components: Mapping[str, Component]
    scheduler: Mapping[str, Any]
    tokenizers: Mapping[str, Tokenizer]


def blueprint(kind: str, config: Mapping[str, Any]) -> nn.Module:
    """The library's module with its weights' names and shapes, but no weights (they are on torch's
    meta device). Raises CheckpointError for a configuration the class does not take."""
    library = transformers if hasattr(transformers, kind) else diffusers
    made = getattr(library, kind)
    try:
        with init_empty_weights():
            if library is transformers:
                module: nn.Module = made(made.config_class(**config))
            else:
                taken = inspect.signature(made.__init__).parameters
                module = made.from_config({k: v for k, v in config.items() if k in taken})
    except Exception as error:  # whatever the class raises, its configuration is the reason
        raise CheckpointError(f"no {kind} can be built from its config ({error})") from error
    return module


def component(
    kind: str, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], where: object
) -> Component:
    """The component, with a complete configuration and the class's own names of weights, checked.

    Takes what older versions of the libraries wrote: text encoders' names with and without
    "text_model.", position_ids among the weights, VAE attention named query, key, value.
    where: what messages call the place. Raises CheckpointError, naming the first wrong weight.
    """
    module = blueprint(kind, config)
    expected = module.state_dict()
    found = _todays_names(weights, expected)
    for name in expected:
        if name not in found:
            raise CheckpointError(f"{name} is missing from {where}: it is no whole {kind}")
    for name, weight in found.items():
        if name not in expected:
            raise CheckpointError(
                f"{where} holds {name}, which a {kind} of its configuration does not have"
            )
        if weight.shape != expected[name].shape:
            raise CheckpointError(
                f"{name} of {where} has the shape {list(weight.shape)}; a {kind} of its"
                f" configuration has {list(expected[name].shape)}"
            )
        if weight.dtype not in PRECISIONS:
            allowed = ", ".join(str(p).removeprefix("torch.") for p in PRECISIONS)
            raise CheckpointError(
                f"{name} of {where} is {str(weight.dtype).removeprefix('torch.')}; weights in"
                f" {allowed} are taken"
            )
    return Component(kind, _complete(module), {name: found[name] for name in expected})


def _complete(module: nn.Module) -> dict[str, Any]:
    """What shapes the network alone: not where it came from, nor the precision of its file."""
    if isinstance(module, transformers.PreTrainedModel):
        module.config.architectures = [type(module).__name__]
        known = module.config.to_dict()
        left_out = {"dtype", "torch_dtype", "transformers_version"}
        return {k: v for k, v in known.items() if k not in left_out and not k.startswith("_")}
    taken = inspect.signature(type(module).__init__).parameters
    return {name: value for name, value in module.config.items() if name in taken}


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _todays_names(
    weights: Mapping[str, torch.Tensor], expected: Collection[str]
) -> dict[str, torch.Tensor]:
    found = {}
    for old, weight in weights.items():
        name = old
        place, _, leaf = name.rpartition(".")
        owner, _, part = place.rpartition(".")
        if name not in expected and part in _OLD_ATTENTION:
            name = f"{owner}.{_OLD_ATTENTION[part]}.{leaf}"
            # Written before attention was made of linear layers: 1×1 convolutions.
            weight = weight.reshape(weight.shape[:2]) if leaf == "weight" else weight
        for alternative in (name.removeprefix("text_model."), f"text_model.{name}"):
            if name not in expected and alternative in expected:
                name = alternative
        if name in expected or not _is_no_part(name):
            found[name] = weight
    return found


def _is_no_part(name: str) -> bool:
    """Whether files of text encoders hold it though it is none of the network's weights."""
    return name.endswith(("position_ids", "logit_scale")) or name == "text_projection.weight"
