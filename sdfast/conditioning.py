"""Prompts become contexts: text → tokens → what the U-Net's cross-attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from .backends import Engine
from .errors import BundleError, InvalidRequest
from .tensors import Tensor


def load_tokenizer(file: Path) -> Tokenizer:
    """The bundle's tokenizer.json. Raises BundleError when it cannot be read."""
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise BundleError(
            f"the tokenizer {file} cannot be read ({error}): export the bundle again"
        ) from error


def tokens(tokenizer: Tokenizer, name: str, text: str, length: int) -> list[int]:
    """The `length` token ids of a text: start, words, end, padding.

    Raises InvalidRequest when the text is longer: nothing of a prompt is dropped silently. `name`
    is what the text is called in that message.
    """
    tokenizer.no_truncation()
    ids = tokenizer.encode(text).ids
    if len(ids) > length:
        raise InvalidRequest(
            f"the {name} has {len(ids) - 2} tokens; the model reads {length - 2}: shorten it"
        )
    return list(ids)


class TextEncoder:
    """The text encoder with its buffers, for up to two texts at once.

    `encode` fills `context`: f32 [2, tokens, width], row k for text k.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, length: int, width: int) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._length = length
        self._tokens = Tensor.empty((2, length), "i32")
        self.context = Tensor.empty((2, length, width), "f32")
        engine.bind({"tokens": self._tokens, "context": self.context})

    def encode(self, texts: Sequence[tuple[str, str]]) -> None:
        """Encodes one or two texts, each a (name, text); with one, both rows hold it."""
        ids = [tokens(self._tokenizer, name, text, self._length) for name, text in texts]
        rows = memoryview(self._tokens).cast("B").cast("i")
        for k, word in enumerate(ids[0] + ids[-1]):
            rows[k] = word
        self._engine.run()

    def close(self) -> None:
        self._engine.close()
