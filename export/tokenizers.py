"""Tokenizers as the runtime takes them: tokenizers.Tokenizer, cut and padded to the model's length.

SD 1.x was trained on prompts padded with the end token, everything that reads OpenCLIP's encoder on
prompts padded with token 0, "!". A "!" in a prompt is a word like any other, as in training;
transformers takes it for padding where that is its pad token (diffusers issue 4153).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from transformers import CLIPTokenizerFast

from ..errors import CheckpointError
from .weight_files import read_json

START, END = "<|startoftext|>", "<|endoftext|>"
PUBLISHED = "openai/clip-vit-large-patch14"
FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def read(folder: Path, length: int = 77, pad: str | None = None) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.json, or vocab.json and merges.txt.

    length: tokens the text encoder takes; pad: the padding token, by default what the folder's
    special_tokens_map.json or tokenizer_config.json says. Raises CheckpointError.
    """
    settings = _optional(folder / "tokenizer_config.json")
    special = _optional(folder / "special_tokens_map.json")
    tokenizer = _unpadded(folder)
    # The map comes first: SD 2's two files differ, and it was trained with the map's.
    pad = pad or _content(special.get("pad_token") or settings.get("pad_token") or END)
    number = tokenizer.token_to_id(pad)
    if number is None:
        raise CheckpointError(f"{folder} pads with {pad!r}, which is not in its vocabulary")
    limit = settings.get("model_max_length", length)
    if isinstance(limit, int | float) and 0 < limit < length:
        length = int(limit)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=number, pad_token=pad)
    return tokenizer


def published(length: int, pad: str) -> Tokenizer:
    """CLIP's own, from the hub's cache or else the hub: every family's vocabulary is that one.
    Raises CheckpointError where neither has it."""
    for cached in (True, False):  # no request to the hub where the cache has it
        try:
            folder = snapshot_download(
                PUBLISHED, allow_patterns=list(FILES), local_files_only=cached
            )
            return read(Path(folder), length, pad)
        except (OSError, RuntimeError, ValueError, CheckpointError) as error:
            reason = str(error).strip().splitlines()[0]
    raise CheckpointError(
        f"a single file holds no tokenizer, and {PUBLISHED} cannot be had from the hub ({reason}):"
        " pass --tokenizer FOLDER, a folder with its vocab.json and merges.txt"
    )


def _unpadded(folder: Path) -> Tokenizer:
    whole, words, merges = (folder / name for name in FILES[:3])
    if whole.is_file():
        try:
            return Tokenizer.from_str(whole.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise CheckpointError(f"{whole} cannot be read ({error}): it is damaged") from error
    if not (words.is_file() and merges.is_file()):
        raise CheckpointError(
            f"{folder} has no tokenizer.json, nor vocab.json and merges.txt:"
            " pass --tokenizer FOLDER, a folder that has"
        )
    vocabulary = read_json(words)
    pairs = [
        tuple(line.split())
        for line in merges.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#version")
    ]
    try:
        made = CLIPTokenizerFast(vocab=vocabulary, merges=pairs)
        return Tokenizer.from_str(made.backend_tokenizer.to_str())
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(f"{folder} holds no CLIP tokenizer ({error})") from error


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _content(token: Any) -> str:
    """A token is written as a string, or as an object of its properties."""
    return str(token["content"] if isinstance(token, dict) else token)
