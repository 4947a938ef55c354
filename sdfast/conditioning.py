"""Prompts become what the U-Net reads beside latents and time: text → tokens → contexts, and the
picture's sizes and guidance where the model reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from .backends import Engine
from .bundle import Context
from .errors import BundleError, InvalidRequest
from .tensors import Tensor, TensorSpec

UNGUIDED, GUIDED = 0, 1  # the rows of every tensor of `Conditions`
LATENT = frozenset({"latent", "timestep", "time"})  # what a U-Net reads that is no condition


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
    is what the text is called in that message. Raises BundleError where the tokenizer pads to
    another length.
    """
    tokenizer.no_truncation()
    ids = tokenizer.encode(text).ids
    if len(ids) > length:
        raise InvalidRequest(
            f"the {name} has {len(ids) - 2} tokens; the model reads {length - 2}: shorten it"
        )
    if len(ids) < length:
        raise BundleError(
            f"the tokenizer pads to {len(ids)} tokens, the model reads {length}: export the "
            "bundle again"
        )
    return list(ids)


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
    """One text encoder with its buffers, for one text at a time: its outputs are the same bits
    whatever is encoded beside it.

    outputs: f32 context [1, tokens, width], and pooled [1, width] of an encoder that has it
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, length: int) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._length = length
        self._tokens = Tensor.empty((1, length), "i32")
        self.outputs = {n: spec.empty(1, length) for n, spec in engine.outputs.items()}

    def encode(self, name: str, text: str) -> None:
        """Fills `outputs`; `name` is what the text is called when it is too long."""
        words = memoryview(self._tokens).cast("B").cast("i")
        for k, word in enumerate(tokens(self._tokenizer, name, text, self._length)):
            words[k] = word
        self._engine.bind({"tokens": self._tokens, **self.outputs})
        self._engine.run()

    def close(self) -> None:
        self._engine.close()


class Conditions:
    """What a request says to the networks, the same at every step and for every image.

    encoders: whose contexts the U-Net reads side by side
    projection: the network context_projection, where its work is hoisted out of the U-Net
    inputs: of the U-Net and of the networks before it, by name
    rows: f32 tensors of two rows, UNGUIDED and GUIDED, by the names of those inputs: context
        [2, n, C], keys_values [2, n, K], pooled [2, P], sizes [2, 5 or 6], guidance [2]
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder],
        projection: Engine | None,
        inputs: Mapping[str, TensorSpec],
        context: Context,
    ) -> None:
        self._encoders = encoders
        self._projection = projection
        self._zeros_for_empty = context.zeros_for_empty
        self.rows = {
            name: spec.empty(2, context.tokens)
            for name, spec in inputs.items()
            if name not in LATENT
        }
        self._row = [
            {name: rows.rows(k, k + 1) for name, rows in self.rows.items()}
            for k in (UNGUIDED, GUIDED)
        ]

    def read(self, prompt: str, negative_prompt: str | None) -> None:
        """Writes the rows that depend on words, each text encoded once; with None in place of a
        negative prompt the guided ones alone. Raises InvalidRequest for a text that is too long."""
        self._encode(GUIDED, "prompt", prompt)
        if negative_prompt is not None:
            if negative_prompt == prompt:
                self._write_texts(UNGUIDED, self._row[GUIDED])
            elif negative_prompt == "" and self._zeros_for_empty:
                self._write_texts(UNGUIDED, None)
            else:
                self._encode(UNGUIDED, "negative prompt", negative_prompt)
        if self._projection is not None:
            # Row by row, as texts are encoded: the bits of one do not depend on the other.
            for row in (GUIDED,) if negative_prompt is None else (UNGUIDED, GUIDED):
                self._projection.bind(self._row[row])
                self._projection.run()

    def _encode(self, row: int, name: str, text: str) -> None:
        for encoder in self._encoders:
            encoder.encode(name, text)
        written = [encoder.outputs for encoder in self._encoders]
        _beside(self._row[row]["context"], [outputs["context"] for outputs in written])
        if "pooled" in self.rows:
            (pooled,) = (outputs["pooled"] for outputs in written if "pooled" in outputs)
            _bytes(self._row[row]["pooled"])[:] = _bytes(pooled)

    def _write_texts(self, row: int, source: Mapping[str, Tensor] | None) -> None:
        for name in {"context", "pooled"} & set(self.rows):
            target = self._row[row][name]
            _bytes(target)[:] = _bytes(source[name]) if source else bytes(target.nbytes)

    def tell(self, width: int, height: int, guidance: float) -> None:
        """Writes the picture's sizes, in pixels, and the scale of guidance as a model that embeds
        it reads it, scale − 1 (arXiv:2310.04378), where the networks read them."""
        for row in (UNGUIDED, GUIDED):
            for name, told in self._row[row].items():
                if name == "sizes":
                    _fill(told, sizes(width, height, told.shape[1], row))
                elif name == "guidance":
                    _fill(told, [guidance - 1])

    def fill(self, tensors: Mapping[str, Tensor], rows: int, times: int) -> None:
        """Fills those of `tensors` that are conditions, [rows · times, …]: each of the last `rows`
        rows (both, or the guided one) `times` times."""
        for name in set(tensors) & set(self.rows):
            target = _bytes(tensors[name])
            half = self.rows[name].nbytes // 2
            for k, row in enumerate(self._row[-rows:]):
                source = _bytes(row[name])
                for start in range(k * times * half, (k + 1) * times * half, half):
                    target[start : start + half] = source

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


def _beside(context: Tensor, parts: Sequence[Tensor]) -> None:
    """context [1, n, ΣC] = the parts [1, n, C] side by side."""
    count = context.shape[1]
    target, sources = _bytes(context), [_bytes(part) for part in parts]
    sides = [part.nbytes // count for part in parts]
    start = 0
    for k in range(count):
        for source, side in zip(sources, sides, strict=True):
            target[start : start + side] = source[k * side : (k + 1) * side]
            start += side
