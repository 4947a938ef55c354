"""Small safetensors files that add to a checkpoint: LoRA and textual inversion."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError


def read(file: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a .safetensors file and the texts of its header.

    `what` is what the file is called in messages. Raises CheckpointError, also for pickles (.pt,
    .bin, .ckpt): reading one can run any program that it holds.
    """
    if not file.is_file():
        raise CheckpointError(f"the {what} {file} does not exist: give a .safetensors file")
    if file.suffix.lower() != ".safetensors":
        raise CheckpointError(
            f"the {what} {file} is not a .safetensors file: pickles (.pt, .bin, .ckpt) can run any"
            " program when they are read, so convert it with a tool you trust"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the {what} {file} cannot be read ({error})") from error
    if not tensors:
        raise CheckpointError(f"the {what} {file} is empty")
    return tensors, header
