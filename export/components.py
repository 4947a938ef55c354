"""What a checkpoint holds: components with the weights of their files, untouched until used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from ..errors import CheckpointError


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
        library = transformers if hasattr(transformers, self.kind) else diffusers
        made = getattr(library, self.kind)
        with torch.device("meta"):
            if library is transformers:
                module: nn.Module = made(made.config_class(**self.config))
            else:
                module = made.from_config(dict(self.config))
        widened = {name: weight.float() for name, weight in self.weights.items()}
        try:
            module.load_state_dict(widened, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{self.kind} cannot be loaded ({error})") from error
        return module.eval().requires_grad_(False)


@dataclass(frozen=True)
class Checkpoint:
    """A model: its components, noise schedule and tokenizers.

    source: what the user gave: a folder, a file, or a hub id with its revision
    family: one of FAMILIES; task: one of TASKS
    prediction: "epsilon", "v_prediction" or "sample"
    components: by diffusers' names: text_encoder, text_encoder_2, unet, vae, controlnet
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


FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner")
TASKS = ("text", "inpaint", "edit", "control")
