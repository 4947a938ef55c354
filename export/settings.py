from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    recipe: Any = None
    backend: str = "onnxruntime"
    revision: str | None = None
    family: str | None = None
    prediction: str | None = None
    vae: Path | None = None
    preview: Path | None = None
    tokenizer: Path | None = None
    loras: tuple = ()
    embeddings: tuple = ()
    precision: str | None = None
    link: bool = False
    graph_from: Path | None = None
    allow_pickle: bool = False
    overwrite: bool = False
