"""Adds textual-inversion embeddings to a checkpoint: new words with trained vectors.

Textual inversion (Gal et al., arXiv:2208.01618) learns vectors [n, C] that stand in a prompt for a
new word. The file formats: A1111's {"emb_params": [n, C]}, SDXL's {"clip_l": [n, 768], "clip_g":
[n, 1280]}, diffusers' {word: [C] or [n, C]}.

A tokenizer that knows the word gives n ids for it, so whoever runs the checkpoint needs no more
than its tokenizers. With one vector the word is an added token. With more, the vectors are the
added tokens word_0 … word_{n-1}, and the last step of the normalizer writes these for the word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer

from ..errors import CheckpointError
from . import addons
from .components import Checkpoint, Component

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
SDXL = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
UNNAMED = ("emb_params", "*")  # keys that are no words: A1111 calls the embedding after its file
LEGACY_END = 2


@dataclass(frozen=True)
class Report:
    """What an embedding file added: prompts may say `token`, which stands for `vectors` ids."""

    file: Path
    token: str
    vectors: int

    def __str__(self) -> str:
        vectors = f"{self.vectors} vectors" if self.vectors > 1 else "1 vector"
        return f"{self.file.name}: {self.token!r} stands for {vectors}"


def add(checkpoint: Checkpoint, file: Path, token: str | None = None) -> tuple[Checkpoint, Report]:
    """The checkpoint that knows the embedding's word, and what was added.

    token: the word that prompts use; without it, the name in a file of diffusers' form, else the
        file's name without .safetensors. It is found as the tokenizer finds words: in any case of
        letters, and inside longer words too.

    Raises CheckpointError for a file that cannot be read, vectors of another width (made for
    another family), and a word that the vocabulary has.
    """
    tensors, _ = addons.read(file, "embedding")
    encoders = [name for name in TOKENIZERS if name in checkpoint.components]
    if not encoders:
        raise CheckpointError(f"{checkpoint.source} has no text encoder to add {file} to")
    named, vectors = _vectors(tensors, encoders, file, checkpoint)
    word = named if token is None else token
    components, tokenizers = dict(checkpoint.components), dict(checkpoint.tokenizers)
    for encoder in encoders:
        tokenizer = tokenizers[TOKENIZERS[encoder]]
        first = tokenizer.get_vocab_size(with_added_tokens=True)
        count = len(vectors[encoder])
        tokenizers[TOKENIZERS[encoder]] = _with_word(tokenizer, word, first, count)
        components[encoder] = _with_rows(
            components[encoder], vectors[encoder], first, _end(tokenizer), file, encoder
        )
    added = replace(checkpoint, components=components, tokenizers=tokenizers)
    return added, Report(file, word, count)


def _vectors(
    tensors: Mapping[str, torch.Tensor], encoders: list[str], file: Path, checkpoint: Checkpoint
) -> tuple[str, dict[str, torch.Tensor]]:
    """The word by the file, and for each text encoder its vectors [n, C]."""
    if set(SDXL.values()) <= set(tensors):
        if "text_encoder_2" not in encoders:
            raise CheckpointError(
                f"the embedding {file} is made for SDXL (clip_l and clip_g); {checkpoint.source} is"
                f" {checkpoint.family}"
            )
        found = {encoder: tensors[SDXL[encoder]] for encoder in encoders}
        word = file.stem
    elif "text_encoder_2" in encoders:
        raise CheckpointError(
            f"the embedding {file} has no vectors for both text encoders; {checkpoint.source} is"
            f" {checkpoint.family}, whose embeddings have clip_l and clip_g"
        )
    elif len(tensors) == 1:
        (name, vectors), *_ = tensors.items()
        found = {encoders[0]: vectors}
        word = file.stem if name in UNNAMED else name
    elif "emb_params" in tensors:
        found, word = {encoders[0]: tensors["emb_params"]}, file.stem
    else:
        names = ", ".join(sorted(tensors)[:4])
        raise CheckpointError(
            f"the embedding {file} holds {names}; known are emb_params, clip_l with clip_g, or one"
            " tensor under the word's name"
        )
    rows = {encoder: torch.atleast_2d(vectors) for encoder, vectors in found.items()}
    if any(vectors.ndim != 2 or not vectors.isfinite().all() for vectors in rows.values()):
        raise CheckpointError(f"the embedding {file} is damaged: it is no table of finite numbers")
    if len({len(vectors) for vectors in rows.values()}) != 1 or not len(rows[encoders[0]]):
        raise CheckpointError(f"the embedding {file} has not one number of vectors, 1 or more")
    return word, rows


def _with_word(tokenizer: Tokenizer, word: str, first: int, count: int) -> Tokenizer:
    """A copy of the tokenizer that gives the ids first … first + count - 1 for the word."""
    parts = [word] if count == 1 else [f"{word}_{k}" for k in range(count)]
    _refuse_known(tokenizer, word, parts)
    added = Tokenizer.from_str(tokenizer.to_str() if count == 1 else _expanding(tokenizer, parts))
    added.add_tokens([AddedToken(part, normalized=True) for part in parts])
    ids = list(range(first, first + count))
    if not word.strip() or added.encode(word, add_special_tokens=False).ids[:count] != ids:
        raise CheckpointError(f"{word!r} cannot be a token: give another, such as '<new-word>'")
    return added


def _refuse_known(tokenizer: Tokenizer, word: str, parts: list[str]) -> None:
    vocabulary = {known.lower() for known in tokenizer.get_vocab(with_added_tokens=True)}
    # "cat</w>" is the whole word "cat"; "x_0" is there when x is an embedding of several vectors.
    for known in (word, f"{word}</w>", f"{word}_0", *parts):
        if known.lower() in vocabulary:
            raise CheckpointError(
                f"the vocabulary has {word!r} already: give the embedding another token, such as"
                f" '<{word.strip('<>')}-2>'"
            )


def _expanding(tokenizer: Tokenizer, parts: list[str]) -> str:
    """The tokenizer's JSON with a last normalizer that writes the parts for their word."""
    written = json.loads(tokenizer.to_str())
    known = tokenizer.normalizer
    normalized = [known.normalize_str(part) if known is not None else part for part in parts]
    # The tokenizer normalizes added tokens as it does prompts: its own parts stay as they are.
    word = re.escape(normalized[0].removesuffix("_0"))
    step = {
        "type": "Replace",
        "pattern": {"Regex": f"{word}(?!_[0-{min(len(parts), 10) - 1}])"},
        "content": " ".join(normalized),
    }
    before = written["normalizer"]
    steps = before["normalizers"] if before and before["type"] == "Sequence" else [before]
    written["normalizer"] = {
        "type": "Sequence",
        "normalizers": [*(one for one in steps if one is not None), step],
    }
    return json.dumps(written)


def _end(tokenizer: Tokenizer) -> int:
    """The id that ends a text, before padding."""
    encoding = tokenizer.encode("")
    return int(encoding.ids[sum(encoding.attention_mask) - 1])


def _with_rows(
    component: Component, vectors: torch.Tensor, first: int, end: int, file: Path, encoder: str
) -> Component:
    """The text encoder with the vectors as its embeddings of tokens from `first` on."""
    (name,) = (key for key in component.weights if key.endswith("token_embedding.weight"))
    rows = component.weights[name]
    if vectors.shape[1] != rows.shape[1]:
        raise CheckpointError(
            f"the embedding {file} has vectors of {vectors.shape[1]} numbers and the {encoder}"
            f" takes {rows.shape[1]}: it is made for another family"
        )
    if len(rows) < first:
        raise CheckpointError(
            f"the tokenizer has {first} tokens and the {encoder} knows {len(rows)}: they are not of"
            " one model"
        )
    weight = torch.cat([rows[:first], vectors.to(rows.dtype), rows[first + len(vectors) :]])
    config = {**component.config, "vocab_size": len(weight)}
    if config.get("eos_token_id") == LEGACY_END:
        # transformers then takes the pooled output at the largest id of a text, which was the end
        # of text until now; with the end's own id it looks for that.
        config["eos_token_id"] = end
    return replace(component, config=config, weights={**component.weights, name: weight})
