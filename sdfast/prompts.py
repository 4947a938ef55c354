r"""Prompts: A1111's grammar, read once, with the column of what cannot be read.

    (words)  [words]  (words:1.3)       weights × 1.1, ÷ 1.1 and × 1.3; nested ones multiply
    \( \) \[ \] \\ \: \| \<             the characters themselves
    a BREAK b                           b begins a chunk of its own
    [from:to:0.4]  [to:0.4]  [from::8]  changes after 0.4 of the steps, or after step 8
    [a|b|c]                             takes turns, a step each
    a AND b:0.5                         prompts composed, each with a weight
    <lora:name:0.8>                     a LoRA, and no words

Brackets that do not pair are no mistakes: one that is not closed holds to the end, one that closes
nothing is text. docs/prompts.md says what else is text. Reading takes time in proportion to the
length, for texts that were made to take longer too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from .errors import InvalidRequest

ROUND, SQUARE = 1.1, 1 / 1.1  # what brackets without a number multiply by
LARGEST = 1e6  # of weights
DEEPEST = 50  # changes and turns inside of each other


@dataclass(frozen=True)
class Piece:
    """Words of one weight."""

    text: str
    weight: float


@dataclass(frozen=True)
class Text:
    """Weighted words, as they are encoded. parts: between the BREAKs, one or more."""

    parts: tuple[tuple[Piece, ...], ...]


EMPTY = Text(((),))


@dataclass(frozen=True)
class Lora:
    """A LoRA by its name, which is one of a file in some folder and leads out of none."""

    name: str
    weight: float
    column: int


class Break:
    """Between two chunks."""


@dataclass(frozen=True, eq=False)
class Change:
    """`before` up to a step and `after` from there on. when: that step, or, with `share`, its part
    of all steps."""

    before: tuple[Item, ...]
    after: tuple[Item, ...]
    when: float
    share: bool

    def at(self, step: int, steps: int) -> tuple[Item, ...]:
        last = min(float(steps), self.when * steps if self.share else self.when)
        return self.before if step <= int(max(last, 0.0)) else self.after


@dataclass(frozen=True, eq=False)
class Turns:
    """The options one after the other, a step each."""

    options: tuple[tuple[Item, ...], ...]

    def at(self, step: int, steps: int) -> tuple[Item, ...]:
        return self.options[(step - 1) % len(self.options)]


Item: TypeAlias = Piece | Break | Change | Turns


@dataclass(frozen=True, eq=False)
class Part:
    """One of the prompts that AND composes."""

    items: tuple[Item, ...]
    weight: float
    changes: bool

    def at(self, step: int, steps: int) -> Text:
        """What it says at that of `steps` steps, counted from 1."""
        parts: list[list[Piece]] = [[]]
        for item in _said(self.items, step, steps):
            if isinstance(item, Break):
                parts.append([])
            else:
                parts[-1].append(item)
        return Text(tuple(map(_joined, parts)))


def _said(items: Sequence[Item], step: int, steps: int) -> Iterator[Piece | Break]:
    for item in items:
        if isinstance(item, Piece | Break):
            yield item
        else:
            yield from _said(item.at(step, steps), step, steps)


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The same words, neighbours of one weight in one piece."""
    return tuple(
        Piece("".join(piece.text for piece in equal), weight)
        for weight, equal in groupby(pieces, key=attrgetter("weight"))
    )


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as it was read."""

    parts: tuple[Part, ...]
    loras: tuple[Lora, ...]

    @property
    def changes(self) -> bool:
        """Whether it may say something else at another step."""
        return any(part.changes for part in self.parts)


def parse(text: str, name: str = "prompt", *, composed: bool = True) -> Prompt:
    """Reads a prompt. name: what it is called in messages; composed: whether AND composes, as it
    does in all but negative prompts, where it is a word.

    Raises InvalidRequest with the column, from 1, of what is surely a mistake.
    """
    tokens, tags = _tokens(text, name, composed)
    ends = [*(k for k, token in enumerate(tokens) if token.kind == "AND"), len(tokens)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    parts = [
        _Reader(tokens, start, end, tags, name).part(composed)
        for start, end in zip(starts, ends, strict=True)
    ]
    return Prompt(tuple(parts), tuple(lora for loras in tags.values() for lora in loras))


def plain(text: Text) -> str:
    """Its words without weights."""
    return " BREAK ".join("".join(piece.text for piece in part) for part in text.parts)


def _mistake(name: str, column: int, sentence: str) -> InvalidRequest:
    return InvalidRequest(f"the {name}, column {column}: {sentence}")


# --- tokens ---------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<escape>\\.?)
      | <(?P<tag>lora|lyco|hypernet):(?P<inside>[^<>]*)(?P<end>>?)
      | (?P<mark>[()\[\]:|])
      | \b(?P<word>AND|BREAK)\b
      | (?P<text>[^\\()\[\]:|<AB]+|.)""",
    re.DOTALL | re.VERBOSE,
)
_WEIGHT = re.compile(r"\s*([+-]?[0-9.]+)\s*")  # what A1111 takes for a weight, if it is a number
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Token(NamedTuple):
    """kind: "text", "AND", "BREAK", or the bracket, colon or bar that it is."""

    kind: str
    text: str
    column: int


def _tokens(text: str, name: str, composed: bool) -> tuple[list[_Token], dict[int, list[Lora]]]:
    """The tokens, and the LoRAs by the index of the token that they stand before."""
    if half := _SURROGATE.search(text):
        raise _mistake(name, half.start() + 1, "half of a surrogate pair is no character")
    tokens: list[_Token] = []
    tags: dict[int, list[Lora]] = {}
    for match in _TOKEN.finditer(text):
        column, found = match.start() + 1, match.group()
        if match["tag"]:
            tags.setdefault(len(tokens), []).append(_lora(match, name, column))
        elif match["mark"] or (match["word"] and (composed or found != "AND")):
            tokens.append(_Token(found, found, column))
        else:
            tokens.append(_Token("text", found[1:] if match["escape"] else found, column))
    return tokens, tags


def _lora(match: re.Match[str], name: str, column: int) -> Lora:
    if match["tag"] != "lora":
        raise _mistake(name, column, f"<{match['tag']}:…> is not known: <lora:name:weight> is")
    if not match["end"]:
        raise _mistake(name, column, "<lora: is not closed: write <lora:name:weight>")
    called, *weights = match["inside"].split(":")
    tag, column = column, column + len("<lora:")
    if not called.strip():
        raise _mistake(name, column, "the LoRA has no name: write <lora:name:weight>")
    if ".." in called or not called.isprintable() or not {"/", "\\"}.isdisjoint(called):
        raise _mistake(
            name,
            column,
            f"{called!r} is no LoRA's name: it is a file's, without its folder and .safetensors",
        )
    column += len(called) + 1
    if len(weights) > 1:
        raise _mistake(name, column, "a LoRA has one weight: write <lora:name:weight>")
    if weights and not _NUMBER.fullmatch(weights[0]):
        raise _mistake(name, column, f"the weight {weights[0]!r} is no number")
    weight = float(weights[0]) if weights else 1.0
    return Lora(called.strip(), _within(weight, name, column), tag)


def _within(weight: float, name: str, column: int) -> float:
    if not abs(weight) <= LARGEST:
        raise _mistake(
            name, column, f"the weight here is {weight:g}; it must be from -1000000 to 1000000"
        )
    return weight


# --- parts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """Brackets that choose. separators: the indices of its colons or bars; end: of what closes it;
    when: where a change comes, "" for turns."""

    separators: frozenset[int]
    end: int
    when: str

    def made(self, options: list[tuple[Item, ...]]) -> Change | Turns:
        if not self.when:
            return Turns(tuple(options))
        before, after = ((), *options[:-1])[-2:]  # the last one is the number
        return Change(before, after, float(self.when), "." in self.when)


class _Reader:
    """Reads tokens start … end - 1, which no AND is among."""

    def __init__(
        self,
        tokens: Sequence[_Token],
        start: int,
        end: int,
        tags: Mapping[int, Sequence[Lora]],
        name: str,
    ) -> None:
        self._tokens, self._range, self._tags, self._name = tokens, range(start, end), tags, name
        self._factors: dict[int, float] = {}  # by the index of what opens
        self._closers: set[int] = set()
        self._silent: set[int] = set()  # colons and numbers of weights

    def part(self, weighted: bool) -> Part:
        """weighted: whether `:1.2` at the end is the part's weight in the composition"""
        weight = self._last_weight() if weighted else 1.0
        choices = self._choices()
        self._pair(choices)
        return Part(self._items(choices), weight, bool(choices))

    def _last_weight(self) -> float:
        start, end = self._range.start, self._range.stop
        if end - start < 2 or self._tokens[end - 2].kind != ":":
            return 1.0
        number = self._tokens[end - 1]
        if number.kind != "text" or not _NUMBER.fullmatch(number.text):
            return 1.0
        self._range = range(start, end - 2)
        return _within(float(number.text), self._name, number.column)

    def _choices(self) -> dict[int, _Choice]:
        """The square brackets that choose, by the index of what opens them. All brackets inside of
        them pair: one that closes another than was opened last leaves all open ones unpaired."""
        found: dict[int, _Choice] = {}
        opened: list[tuple[int, list[int]]] = []  # with the colons and bars right inside
        for k in self._range:
            kind = self._tokens[k].kind
            if kind in ("(", "["):
                opened.append((k, []))
            elif kind in (":", "|") and opened:
                opened[-1][1].append(k)
            elif kind in (")", "]"):
                if not opened or self._tokens[opened[-1][0]].kind + kind not in ("()", "[]"):
                    opened.clear()
                    continue
                start, marks = opened.pop()
                if kind == "]" and (choice := self._choice(marks, k)):
                    found[start] = choice
        return found

    def _choice(self, marks: Sequence[int], end: int) -> _Choice | None:
        colons = [m for m in marks if self._tokens[m].kind == ":"]
        last = self._tokens[end - 1]
        number = _NUMBER.fullmatch(last.text) if last.kind == "text" else None
        if number and 1 <= len(colons) <= 2 and colons[-1] == end - 2:
            return _Choice(frozenset(colons), end, number[1])
        bars = frozenset(marks) - frozenset(colons)
        return _Choice(bars, end, "") if bars else None

    def _pair(self, choices: Mapping[int, _Choice]) -> None:
        """Pairs the other brackets, round with round and square with square, as A1111 does: one
        kind does not see the other."""
        ends = {choice.end for choice in choices.values()}
        opened: dict[str, list[int]] = {"(": [], "[": []}
        for k in self._range:
            kind = self._tokens[k].kind
            if kind in opened and k not in choices:
                opened[kind].append(k)
                self._factors[k] = ROUND if kind == "(" else SQUARE
            elif kind == ")" and opened["("]:
                self._close(opened["("].pop(), k)
            elif kind == "]" and k not in ends and opened["["]:
                opened["["].pop()
                self._closers.add(k)

    def _close(self, opening: int, k: int) -> None:
        """A round bracket, which a weight may stand before."""
        self._closers.add(k)
        colon, number = self._tokens[k - 2], self._tokens[k - 1]
        if k - 2 <= opening or colon.kind != ":" or number.kind != "text":
            return
        if not (written := _WEIGHT.fullmatch(number.text)):
            return
        if not _NUMBER.fullmatch(number.text):
            raise _mistake(
                self._name,
                number.column,
                f"the weight {written[1]!r} is no number: write (words:1.3)",
            )
        self._factors[opening] = _within(float(written[1]), self._name, number.column)
        self._silent |= {k - 2, k - 1}

    def _items(self, choices: Mapping[int, _Choice]) -> tuple[Item, ...]:
        weights: dict[str, list[float]] = {"(": [1.0], "[": [1.0]}  # products of what is open
        opened: list[tuple[_Choice, list[tuple[Item, ...]], list[Item]]] = []
        items: list[Item] = []
        for k in self._range:
            token = self._tokens[k]
            if opened:
                self._refuse_tags(k)
            if k in choices:
                if len(opened) == DEEPEST:
                    sentence = f"changes are nested more than {DEEPEST} deep: nest fewer"
                    raise _mistake(self._name, token.column, sentence)
                opened.append((choices[k], [], items))
                items = []
            elif opened and (k in opened[-1][0].separators or k == opened[-1][0].end):
                choice, options, outer = opened[-1]
                options.append(tuple(items))
                items = []
                if k == choice.end:
                    opened.pop()
                    outer.append(choice.made(options))
                    items = outer
            elif k in self._factors:
                weights[token.kind].append(weights[token.kind][-1] * self._factors[k])
            elif k in self._closers:
                weights["(" if token.kind == ")" else "["].pop()
            elif token.kind == "BREAK":
                items.append(Break())
            elif k not in self._silent and token.text:
                weight = _within(weights["("][-1] * weights["["][-1], self._name, token.column)
                items.append(Piece(token.text, round(weight, 9)))
        return tuple(items)

    def _refuse_tags(self, k: int) -> None:
        for lora in self._tags.get(k, ()):
            raise _mistake(
                self._name,
                lora.column,
                "a LoRA holds for all steps: name it outside of brackets that change with them",
            )
