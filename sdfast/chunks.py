"""Weighted words as chunks of tokens: what a text encoder reads in one run.

A text encoder reads 77 tokens: start, 75 of words, end. A longer text goes on in the next chunk, as
A1111 has it: cut after the last comma where that is among the chunk's last 20 tokens, so that no
phrase is torn; the vectors of one embedding stay together; BREAK begins the next chunk at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Tokenizer

from .errors import BundleError, InvalidRequest
from .prompts import Piece, Text

MOST = 32  # chunks of a text
COMMA = 20  # tokens before the end of a chunk that a comma is looked for in


@dataclass(frozen=True)
class Chunk:
    """As many tokens as the text encoder reads, and the weight of each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


class _Token(NamedTuple):
    id: int
    weight: float


class Chunker:
    """Cuts texts for one text encoder, which reads `length` tokens at once.

    tokenizer: taken over: it pads no more afterwards
    Raises BundleError where it pads to another length.
    """

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        nothing = tokenizer.encode("").ids
        if len(nothing) != length:
            raise BundleError(
                f"the tokenizer pads to {len(nothing)} tokens, the model reads {length}: export "
                "the bundle again"
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._start, self._end, self._pad = nothing[0], nothing[1], nothing[-1]
        self._room = length - 2
        self._comma = tokenizer.token_to_id(",</w>")
        self._following = _following(tokenizer)

    def chunks(self, text: Text) -> list[Chunk]:
        """One or more. Raises InvalidRequest for more than MOST."""
        parts = [[t for piece in part for t in self._tokens(piece)] for part in text.parts]
        if len(parts) > 1 and not parts[-1]:
            parts.pop()  # nothing follows the last BREAK
        found = [self._framed(tokens) for part in parts for tokens in self._cut(part)]
        if len(found) > MOST:
            raise InvalidRequest(
                f"one of the prompts takes {len(found)} chunks of {self._room} tokens; {MOST} are "
                "allowed: shorten it"
            )
        return found

    def _tokens(self, piece: Piece) -> list[_Token]:
        ids = self._tokenizer.encode(piece.text, add_special_tokens=False).ids
        return [_Token(word, piece.weight) for word in ids]

    def _cut(self, tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
        chunk: list[_Token] = []
        comma = 0  # tokens up to the last one, itself among them; 0 for none
        for unit in self._units(tokens):
            while chunk and len(chunk) + len(unit) > self._room:
                near = comma and len(chunk) - comma < COMMA and unit[0].id != self._comma
                end = comma if near else len(chunk)
                yield chunk[:end]
                chunk, comma = chunk[end:], 0
            chunk += unit
            if unit[0].id == self._comma:
                comma = len(chunk)
        yield chunk

    def _units(self, tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
        """What is not to be cut: each token by itself, the vectors of an embedding together, where
        a chunk has room for them."""
        start = 0
        for k in range(1, len(tokens) + 1):
            follows = k < len(tokens) and self._follows(tokens[k - 1].id, tokens[k].id)
            if not follows or k - start == self._room:
                yield list(tokens[start:k])
                start = k

    def _follows(self, before: int, word: int) -> bool:
        return word in self._following and word == before + 1

    def _framed(self, tokens: Sequence[_Token]) -> Chunk:
        padding = self._room - len(tokens)
        ids = (self._start, *(token.id for token in tokens), self._end, *[self._pad] * padding)
        weights = (1.0, *(token.weight for token in tokens), 1.0, *[1.0] * padding)
        return Chunk(ids, weights)


def _following(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens word_1, word_2, … that come after word_0: an embedding's vectors but its first."""
    added = {k: token.content for k, token in tokenizer.get_added_tokens_decoder().items()}
    numbered = ((k, re.fullmatch(r"(.+)_([1-9][0-9]*)", word)) for k, word in added.items())
    return frozenset(
        k for k, of in numbered if of and added.get(k - 1) == f"{of[1]}_{int(of[2]) - 1}"
    )
