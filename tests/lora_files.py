"""LoRA files of random numbers, as kohya's tools write them, for the layers of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from sdfast import safetensors

PREFIXES = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_text_model_",
    "text_encoder_2": "lora_te2_text_model_",
}
LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out", "time_emb_proj"),
    *("linear_1", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
)
"""What their names end in."""


def layers(checkpoint: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Component, module and the weight's shape of each."""
    for component in PREFIXES:
        for file in sorted((checkpoint / component).glob("*.safetensors")):
            for name, weight in safetensors.read(file)[0].items():
                module = name.removesuffix(".weight")
                # diffusers does not know kohya's name of that one: it reads "add.embedding".
                known = module.endswith(LAYERS) and not module.startswith("add_embedding")
                if module != name and known:
                    yield component, module.removeprefix("text_model."), weight.shape


def write(
    file: Path, checkpoint: Path, seed: int, *, components: tuple[str, ...] = tuple(PREFIXES)
) -> Path:
    """A LoRA of ranks 2 to 4 that changes every weight by about a seventh of it."""
    random, tensors = np.random.default_rng(seed), dict[str, np.ndarray]()
    for k, (component, module, shape) in enumerate(layers(checkpoint)):
        if component not in components:
            continue
        name, rank = PREFIXES[component] + module.replace(".", "_"), 2 + k % 3
        fan_in = int(np.prod(shape[1:]))
        for part, sides, size in (
            ("down", (rank, *shape[1:]), 0.3),
            ("up", (shape[0], rank, *(1 for _ in shape[2:])), 0.3 / np.sqrt(fan_in)),
        ):
            values = random.standard_normal(sides, np.float32) * np.float32(size)
            tensors[f"{name}.lora_{part}.weight"] = values
        # One for all: where they differ, diffusers finds no layer for its alpha_pattern.
        tensors[f"{name}.alpha"] = np.array(3, np.float32)
    save_file(tensors, file)
    return file
