"""Writes a checkpoint with random weights in diffusers' layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, processors
from tokenizers import models as tokenizer_models

from ...errors import CheckpointError, nearest
from .. import tokenizers, weight_files
from ..components import blueprint
from ..demo import models
from .sizes import FAMILIES_OF_CHECKPOINTS, Sizes, sizes
from .weights import random_weight

_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def write(family: str, destination: Path, seed: int = 0) -> Path:
    """Writes the checkpoint folder and returns it. family: one of FAMILIES_OF_CHECKPOINTS."""
    if family not in FAMILIES_OF_CHECKPOINTS:
        raise CheckpointError(
            f"family {family!r} is unknown{nearest(family, FAMILIES_OF_CHECKPOINTS)};"
            f" known: {', '.join(FAMILIES_OF_CHECKPOINTS)}"
        )
    made = sizes(family)
    for part, (kind, config) in made.components.items():
        place = destination if made.pipeline is None else destination / part
        _write_component(place, part, kind, config, made.precision, seed)
    if made.pipeline is not None:
        _write_index(destination, made)
        _write_json(destination / "scheduler" / "scheduler_config.json", made.scheduler)
        _write_tokenizers(destination, made)
    return destination


def _write_component(
    place: Path, part: str, kind: str, config: Mapping[str, Any], dtype: torch.dtype, seed: int
) -> None:
    place.mkdir(parents=True, exist_ok=True)
    module = blueprint(kind, config)
    layout = {name: weight.to(dtype) for name, weight in module.state_dict().items()}
    stem = "model" if kind.startswith("CLIP") else "diffusion_pytorch_model"
    weight_files.write(
        place / f"{stem}.safetensors",
        layout,
        lambda name: random_weight(f"{part}/{name}", layout[name], seed),
    )
    if kind.startswith("CLIP"):
        module.config.architectures = [kind]  # type: ignore[union-attr]
        module.config.save_pretrained(place)  # type: ignore[operator, union-attr]
    else:
        module.save_config(place)  # type: ignore[operator]


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


def _write_index(destination: Path, made: Sizes) -> None:
    index: dict[str, Any] = {"_class_name": made.pipeline} | dict(made.index)
    index["_diffusers_version"] = diffusers.__version__
    for part, (kind, _) in made.components.items():
        index[part] = ["transformers" if kind.startswith("CLIP") else "diffusers", kind]
        if part in _TOKENIZERS:
            index[_TOKENIZERS[part]] = ["transformers", "CLIPTokenizer"]
    index["scheduler"] = ["diffusers", made.scheduler["_class_name"]]
    absent = (
        ("text_encoder", "tokenizer")
        if "text_encoder_2" in made.components
        else ("safety_checker", "feature_extractor")
    )
    for part in absent:
        index.setdefault(part, [None, None])
    if "text_encoder_2" not in made.components:
        index["requires_safety_checker"] = False
    _write_json(destination / "model_index.json", index)


def _write_tokenizers(destination: Path, made: Sizes) -> None:
    trained = models.train_tokenizer(models.captions(500))
    filled = _filled(trained, made.vocabulary)
    for part, folder in _TOKENIZERS.items():
        if part not in made.components:
            continue
        openclip = made.components[part][1]["hidden_act"] == "gelu"
        place = destination / folder
        models.save_tokenizer(_padded(filled, "!" if openclip else models.END), place)
        if openclip:
            for file in ("tokenizer_config.json", "special_tokens_map.json"):
                content = weight_files.read_json(place / file)
                _write_json(place / file, content | {"pad_token": "!"})


def _padded(tokenizer: Tokenizer, pad: str) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    number = copy.token_to_id(pad)
    copy.enable_padding(length=models.TOKENS, pad_id=number, pad_token=pad)
    return copy


def _filled(tokenizer: Tokenizer, count: int) -> Tokenizer:
    """The tokenizer with `count` tokens: ones that no text gives are put before the two special
    tokens, which stay the last, as in CLIP's vocabulary."""
    state = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    words = [w for w in sorted(vocabulary, key=vocabulary.__getitem__) if w not in _SPECIAL]
    words += [f"<|unused{k}|>" for k in range(count - len(words) - len(_SPECIAL))]
    numbers = {word: k for k, word in enumerate([*words, *_SPECIAL])}
    merges = [tuple(pair) for pair in state["model"]["merges"]]
    filled = Tokenizer.from_str(tokenizer.to_str())
    filled.model = tokenizer_models.BPE(
        numbers, merges, unk_token=models.END, end_of_word_suffix="</w>"
    )
    start, end = (numbers[token] for token in _SPECIAL)
    filled.post_processor = processors.TemplateProcessing(
        single=f"{models.START} $A {models.END}",
        special_tokens=[(models.START, start), (models.END, end)],
    )
    return filled


_SPECIAL = (tokenizers.START, tokenizers.END)
