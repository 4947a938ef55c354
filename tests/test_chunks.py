from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from sdfast import store
from sdfast.chunks import MOST, Chunk, Chunker
from sdfast.conditioning import load_tokenizer
from sdfast.errors import InvalidRequest
from sdfast.export import embeddings, sources
from sdfast.export.demo.models import CHECKPOINT
from sdfast.prompts import parse

DEMO = store.load("demo")
TOKENIZER = DEMO.path / DEMO.manifest.tokenizers["text_encoder"].file
START, END = 640, 641


@pytest.fixture(scope="module")
def chunker() -> Chunker:
    return Chunker(load_tokenizer(TOKENIZER), 77)


def chunks(chunker: Chunker, text: str) -> list[Chunk]:
    (part,) = parse(text).parts
    return chunker.chunks(part.at(1, 1))


def words(chunks: list[Chunk]) -> list[int]:
    """How many words there are in each, between its start and its end."""
    for chunk in chunks:
        assert len(chunk.ids) == len(chunk.weights) == 77
        assert chunk.ids[0] == START
    return [chunk.ids.index(END) - 1 for chunk in chunks]


def test_75_words_are_a_chunk(chunker: Chunker) -> None:
    assert words(chunks(chunker, "")) == [0]
    assert words(chunks(chunker, "red " * 75)) == [75]
    assert words(chunks(chunker, "red " * 76)) == [75, 1]
    assert words(chunks(chunker, "red " * 200)) == [75, 75, 50]


def test_a_chunk_is_cut_after_a_comma_near_its_end(chunker: Chunker) -> None:
    for before, lengths in ((54, [75, 25]), (55, [56, 44]), (70, [71, 29]), (74, [75, 25])):
        text = "red " * before + ", " + "blue " * (99 - before)
        assert words(chunks(chunker, text)) == lengths, before
    assert words(chunks(chunker, "red " * 75 + ", blue")) == [75, 2]
    assert words(chunks(chunker, "red blue, " * 50)) == [75, 75]


def test_break_begins_a_chunk(chunker: Chunker) -> None:
    assert words(chunks(chunker, "red BREAK blue star")) == [1, 2]
    assert words(chunks(chunker, "red BREAK BREAK blue")) == [1, 0, 1]
    assert words(chunks(chunker, "red " * 75 + "BREAK")) == [75]
    assert words(chunks(chunker, "BREAK red")) == [0, 1]


def test_every_token_has_the_weight_of_its_words(chunker: Chunker) -> None:
    first, second = chunks(chunker, "red " * 74 + "(blue star:1.3) [ring]")
    assert first.weights == (*[1.0] * 75, 1.3, 1.0)
    assert second.weights == (1.0, 1.3, 0.909090909, *[1.0] * 74)


def test_too_many_chunks_are_refused(chunker: Chunker) -> None:
    assert len(chunks(chunker, "red " * 75 * MOST)) == MOST
    with pytest.raises(InvalidRequest, match="takes 33 chunks of 75 tokens; 32 are allowed"):
        chunks(chunker, "red " * (75 * MOST + 1))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that knows <toy>, an embedding of 4 vectors, and <ink>, one of 1."""
    place = tmp_path_factory.mktemp("taught")
    checkpoint = sources.read(CHECKPOINT)
    for word, vectors in (("<toy>", 4), ("<ink>", 1)):
        save_file({word: torch.ones(vectors, 96)}, place / "learned.safetensors")
        checkpoint, _ = embeddings.add(checkpoint, place / "learned.safetensors")
    checkpoint.tokenizers["tokenizer"].save(str(place / "tokenizer.json"))
    return place / "tokenizer.json"


def test_embeddings_are_found_by_name_with_weights_and_in_long_texts(taught: Path) -> None:
    made = Chunker(Tokenizer.from_file(str(taught)), 77)
    toy, ink = [642, 643, 644, 645], 646
    (one,) = chunks(made, "a (<toy>:1.5) <ink>")
    assert list(one.ids[2:8]) == [*toy, ink, END]
    assert one.weights[:8] == (1.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.0, 1.0)
    first, second = chunks(made, "red " * 90 + "<ink> <toy>")
    assert words([first, second]) == [75, 20]
    assert list(second.ids[16:21]) == [ink, *toy]


def test_the_vectors_of_an_embedding_stay_together(taught: Path) -> None:
    made = Chunker(Tokenizer.from_file(str(taught)), 77)
    assert words(chunks(made, "red " * 71 + "<toy>")) == [75]
    for count in (72, 73, 74, 75):
        assert words(chunks(made, "red " * count + "<toy> blue")) == [count, 5]
    assert words(chunks(made, "<toy> " * 19)) == [72, 4]
