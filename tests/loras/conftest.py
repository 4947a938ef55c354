"""LoRA files for the demo model, and bundles that they were merged into when it was exported."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import lora_files
import pytest

from sdfast import store
from sdfast.bundle import Bundle
from sdfast.export import export
from sdfast.export.demo.models import CHECKPOINT
from sdfast.loras import Lora

Merged = Callable[..., Bundle]


@pytest.fixture(scope="session")
def ink(tmp_path_factory: pytest.TempPathFactory) -> Lora:
    """It changes the U-Net and the text encoder."""
    file = tmp_path_factory.mktemp("ink") / "ink.safetensors"
    return Lora(lora_files.write(file, CHECKPOINT, 1), 0.8)


@pytest.fixture(scope="session")
def fog(tmp_path_factory: pytest.TempPathFactory) -> Lora:
    """It changes the U-Net alone."""
    file = tmp_path_factory.mktemp("fog") / "fog.safetensors"
    return Lora(lora_files.write(file, CHECKPOINT, 2, components=("unet",)), -0.5)


@pytest.fixture(scope="session")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    """merged(*loras): the demo model, exported with these, in the graphs of the demo bundle."""
    place = tmp_path_factory.mktemp("merged")

    @cache
    def bundle(*loras: Lora) -> Bundle:
        name = "-".join(lora.file.stem for lora in loras)
        given = [(lora.file, lora.weight) for lora in loras]
        return export(CHECKPOINT, place / name, loras=given, graph_from=store.find("demo"))

    return bundle
