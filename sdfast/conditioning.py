"""Prompts become what the U-Net reads beside latents and time: texts → chunks of tokens → contexts,
and the picture's sizes and guidance where the model reads them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from pathlib import Path

from tokenizers import Tokenizer

from .backends import Engine
from .bundle import Context
from .chunks import Chunk, Chunker
from .composition import Script
from .errors import BundleError, InvalidRequest
from .prompts import EMPTY, Text
from .tensors import Tensor, TensorSpec

UNGUIDED, GUIDED = 0, 1  # what a row is for
LATENT = frozenset({"latent", "timestep", "time"})  # what a U-Net reads that is no condition
WORDS = frozenset({"context", "keys_values", "pooled"})  # conditions that depend on the words


def load_tokenizer(file: Path) -> Tokenizer:
    """The bundle's tokenizer.json. Raises BundleError when it cannot be read."""
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise BundleError(
            f"the tokenizer {file} cannot be read ({error}): export the bundle again"
        ) from error


def sizes(width: int, height: int, numbers: int, row: int) -> tuple[float, ...]:
    """What SDXL is told of a picture (arXiv:2307.01952, §2.2), for the row UNGUIDED or GUIDED.

    6 numbers: height and width before scaling and cropping, top and left of the crop, height and
    width after. 5, the refiner's: the first four and the aesthetic score that is aimed at.
    """
    uncropped = (height, width, 0, 0)
    if numbers == 6:
        return (*uncropped, height, width)
    return (*uncropped, 6.0 if row == GUIDED else 2.5)


class TextEncoder:
    """One text encoder with its buffers, for one chunk of a text at a time: its outputs are the
    same bits whatever is encoded beside it.

    outputs: f32 context [1, tokens, width]; pooled [1, width] of an encoder that has it; hidden
        [1, layers, tokens, width], what the context is where 1, 2, … of the last layers are left
        out, of one that was exported with it
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, length: int) -> None:
        self._engine = engine
        self._chunker = Chunker(tokenizer, length)
        self._tokens = Tensor.empty((1, length), "i32")
        self.outputs = {n: spec.empty(1, length) for n, spec in engine.outputs.items()}
        self.skippable = self.outputs["hidden"].shape[1] if "hidden" in self.outputs else 0

    def chunks(self, text: Text) -> list[Chunk]:
        """What it reads of a text, one or more. Raises InvalidRequest for a text that is far too
        long."""
        return self._chunker.chunks(text)

    def encode(self, chunk: Chunk, clip_skip: int = 0) -> None:
        """Fills `outputs`, the context weighted. clip_skip: the last layers that are left out of
        it, up to `skippable`."""
        words = _bytes(self._tokens).cast("i")
        for k, word in enumerate(chunk.ids):
            words[k] = word
        self._engine.bind({"tokens": self._tokens, **self.outputs})
        self._engine.run()
        context = _bytes(self.outputs["context"])
        if clip_skip:
            end = clip_skip * len(context)
            context[:] = _bytes(self.outputs["hidden"])[end - len(context) : end]
        _weigh(context.cast("f"), chunk.weights)

    def close(self) -> None:
        self._engine.close()


def _weigh(context: memoryview[float], weights: Sequence[float]) -> None:
    """Multiplies each token's row of the context by its weight, and all of it back to the mean that
    it had, as A1111 does. Where the mean is so near 0 that weights turn or multiply it, it says
    nothing of the context's strength, and is left as it comes."""
    if set(weights) == {1.0}:
        return
    values, side = list(context), len(context) // len(weights)
    mean = fsum(values)
    for k, weight in enumerate(weights):
        if weight != 1:
            row = slice(k * side, (k + 1) * side)
            values[row] = [weight * value for value in values[row]]
    now = fsum(values)
    if 1 / 4 < (back := mean / now if now else 0.0) < 4:
        values = [back * value for value in values]
    context[:] = array("f", values)


class Conditions:
    """What a request says to the networks, for every image the same.

    encoders: whose contexts the U-Net reads side by side
    projection: the network context_projection, where its work is hoisted out of the U-Net
    inputs: of the U-Net and of the networks before it, by name

    Of each text of a script there is a row of each tensor that depends on words (context [1, n, C],
    keys_values [1, n, K], pooled [1, P]), and one for each of UNGUIDED and GUIDED of the others
    (sizes [1, 5 or 6], guidance [1]). n is 77 tokens for each chunk of the longest text: shorter
    ones go on with chunks that say nothing.
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder],
        projection: Engine | None,
        inputs: Mapping[str, TensorSpec],
        context: Context,
    ) -> None:
        self._encoders, self._projection = encoders, projection
        self._inputs = {name: spec for name, spec in inputs.items() if name not in LATENT}
        self._context = context
        self.said = Script((), (), (), None, ())
        self._texts: list[dict[str, Tensor]] = []
        self._told = [
            {name: spec.empty(1) for name, spec in self._inputs.items() if name not in WORDS}
            for _ in (UNGUIDED, GUIDED)
        ]
        self.tokens = 0  # n; 0 before anything is read

    def read(self, said: Script, clip_skip: int = 0) -> None:
        """Encodes every text of a script, once.

        clip_skip: the last layers of the text encoders that are left out, beside those that the
            model always leaves out
        Raises InvalidRequest for texts that are far too long, and layers that there are not.
        """
        self._check_skip(clip_skip)
        chunked = [
            [encoder.chunks(text or EMPTY) for encoder in self._encoders] for text in said.texts
        ]
        count = max(len(chunks) for each in chunked for chunks in each)
        self._make_room(len(said.texts), count * self._context.tokens)
        empty = [encoder.chunks(EMPTY) for encoder in self._encoders]
        for text, each, rows in zip(said.texts, chunked, self._texts, strict=True):
            padded = [(own + count * none)[:count] for own, none in zip(each, empty, strict=True)]
            for k, chunks in enumerate(zip(*padded, strict=True)):
                self._write(rows, k, None if text is None else self._encoded(chunks, clip_skip))
            if self._projection is not None:
                # Row by row, as texts are encoded: the bits of one do not depend on the others.
                self._projection.bind(rows)
                self._projection.run()
        self.said = said

    def _encoded(self, chunks: Sequence[Chunk], clip_skip: int) -> list[Mapping[str, Tensor]]:
        for encoder, chunk in zip(self._encoders, chunks, strict=True):
            encoder.encode(chunk, clip_skip)
        return [encoder.outputs for encoder in self._encoders]

    def _check_skip(self, clip_skip: int) -> None:
        most = min(encoder.skippable for encoder in self._encoders)
        if clip_skip and not most:
            raise InvalidRequest(
                "the bundle was exported without the earlier layers of its text encoder, which "
                "clip_skip reads: leave out clip_skip, or export the bundle again"
            )
        if not 0 <= clip_skip <= most:
            raise InvalidRequest(f"clip_skip is {clip_skip}; it must be from 0 to {most}")

    def _make_room(self, texts: int, tokens: int) -> None:
        if (len(self._texts), self.tokens) != (texts, tokens):
            words = {name: spec for name, spec in self._inputs.items() if name in WORDS}
            self._texts = [
                {name: spec.empty(1, tokens) for name, spec in words.items()} for _ in range(texts)
            ]
            self.tokens = tokens

    def _write(
        self, rows: Mapping[str, Tensor], k: int, written: Sequence[Mapping[str, Tensor]] | None
    ) -> None:
        """Writes chunk k of a text's context, and, of the first, what is pooled; zeros for None."""
        context = _bytes(rows["context"])
        side = len(context) * self._context.tokens // self.tokens
        target = context[k * side : (k + 1) * side]
        if written is None:
            target[:] = bytes(side)
        else:
            parts = [_bytes(outputs["context"]) for outputs in written]
            _beside(target, parts, self._context.tokens)
        if "pooled" in rows and k == 0:
            pooled = _bytes(rows["pooled"])
            pooled[:] = bytes(len(pooled))
            for outputs in written or ():
                if "pooled" in outputs:
                    pooled[:] = _bytes(outputs["pooled"])

    def tell(self, width: int, height: int, guidance: float) -> None:
        """Writes the picture's sizes, in pixels, and the scale of guidance as a model that embeds
        it reads it, scale − 1 (arXiv:2310.04378), where the networks read them."""
        for row in (UNGUIDED, GUIDED):
            for name, told in self._told[row].items():
                if name == "sizes":
                    _fill(told, sizes(width, height, told.shape[1], row))
                elif name == "guidance":
                    _fill(told, [guidance - 1])

    def fill(
        self, tensors: Mapping[str, Tensor], rows: int, times: int, steps: Sequence[int] = (0,)
    ) -> None:
        """Fills those of `tensors` that are conditions, [rows · times · steps, …].

        rows: the last ones of what a step reads: the negative prompt, where there is one, and every
            part of the prompt (`Script.rows`)
        times: of each row in turn, one beside the other
        steps: whose texts, counted from 0: of each row first all of these, then again
        """
        of_steps = [self._rows(step)[-rows:] for step in steps]
        for name in set(tensors) & set(self._inputs):
            target, start = _bytes(tensors[name]), 0
            sources = [[_bytes(row[name]) for row in of_step] for of_step in of_steps]
            for k in range(rows):
                for _ in range(times):
                    for source in sources:
                        end = start + len(source[k])
                        target[start:end] = source[k]
                        start = end

    def _rows(self, step: int) -> list[Mapping[str, Tensor]]:
        said = self.said
        negatives = 0 if said.negatives is None else 1
        return [
            {**self._texts[text], **self._told[UNGUIDED if k < negatives else GUIDED]}
            for k, text in enumerate(said.rows(step))
        ]

    def close(self) -> None:
        """Frees the engines' memory; what was read stays, and they open again for what is next."""
        for encoder in self._encoders:
            encoder.close()
        if self._projection is not None:
            self._projection.close()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor).cast("B")


def _fill(tensor: Tensor, numbers: Iterable[float]) -> None:
    floats = _bytes(tensor).cast("f")
    for k, number in enumerate(numbers):
        floats[k] = number


def _beside(target: memoryview, parts: Sequence[memoryview], count: int) -> None:
    """target [n, ΣC] = the parts [n, C] side by side, as bytes; count: n."""
    sides, start = [len(part) // count for part in parts], 0
    for k in range(count):
        for part, side in zip(parts, sides, strict=True):
            target[start : start + side] = part[k * side : (k + 1) * side]
            start += side
