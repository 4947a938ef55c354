from __future__ import annotations
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from .networks import Options


@dataclass(frozen=True)
class Recipe:
    name: str = "test"
    family: str = "sd1"
    networks: tuple[str, ...] = (
        "text_encoder",
        "text_encoder_2",
        "unet",
        "unet_adapters",
        "vae_decoder",
        "vae_encoder",
        "controlnet",
    )
    precision: Mapping[str, str] = field(default_factory=dict)
    layout: str = "graph"
    options: Options = Options()
    profiles: Mapping[str, Any] = field(default_factory=dict)
    defaults: Any = None


def for_checkpoint(checkpoint: Any, backend: str = "onnxruntime") -> Recipe:
    return Recipe()
