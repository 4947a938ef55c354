from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from sdfast import store
from sdfast.backends import open_engine
from sdfast.bundle import Bundle
from sdfast.chunks import Chunk, Chunker
from sdfast.composition import Script, script
from sdfast.conditioning import (
    GUIDED,
    UNGUIDED,
    Conditions,
    TextEncoder,
    load_tokenizer,
    sizes,
)
from sdfast.errors import BundleError, InvalidRequest
from sdfast.export.demo.models import CHECKPOINT
from sdfast.prompts import parse
from sdfast.tensors import Tensor

DEMO = store.load("demo")
NETWORKS = DEMO.manifest.networks
# Of a U-Net that encodes texts and times itself.
UNET = {
    "latent": NETWORKS["unet"].inputs["latent"],
    **NETWORKS["time_projection"].inputs,
    **NETWORKS["context_projection"].inputs,
}
TOKENIZER = DEMO.path / DEMO.manifest.tokenizers["text_encoder"].file


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return encoder_of(DEMO, "text_encoder")


def encoder_of(bundle: Bundle, name: str) -> TextEncoder:
    engine = open_engine(bundle.network(name), "onnxruntime")
    file = bundle.path / bundle.manifest.tokenizers[name].file
    return TextEncoder(engine, load_tokenizer(file), bundle.context.tokens)


def said(prompt: str, negative: str | None = None, **more: Any) -> Script:
    return script(prompt, negative, 1, **more)


def filled(made: Conditions, name: str = "context", rows: int = 2, **more: Any) -> np.ndarray:
    """The rows of one tensor, as the U-Net reads them."""
    tensor = UNET[name].empty(rows, made.tokens)
    made.fill({name: tensor}, rows, 1, **more)
    return np.array(tensor)


@pytest.mark.parametrize("text", ["", "a red circle", "A RED  Circle,on\nblue!", "żółty 红 🙂 2 '"])
def test_tokens_are_those_of_transformers(text: str, encoder: TextEncoder) -> None:
    theirs = CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    expected = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
    (part,) = parse(text).parts
    (chunk,) = encoder.chunks(part.at(1, 1))
    assert list(chunk.ids) == expected
    assert set(chunk.weights) == {1.0}


def test_a_tokenizer_that_pads_to_another_length_is_refused() -> None:
    with pytest.raises(BundleError, match="pads to 77 tokens, the model reads 80"):
        Chunker(load_tokenizer(TOKENIZER), 80)


def conditions(encoder: TextEncoder) -> Conditions:
    return Conditions([encoder], None, UNET, DEMO.context)


def test_a_text_has_the_same_context_bit_for_bit_in_either_row(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    made.read(said("a red star", "a green ring"))
    (green, red) = filled(made)
    assert np.abs(red - green).max() > 0.1
    made.read(said("a green ring"))
    assert (filled(made, rows=1) == green).all()
    made.read(said("a green ring", "a red star"))
    assert (filled(made) == [red, green]).all()


def test_equal_texts_are_encoded_once(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Chunk] = []
    encode = encoder.encode

    def watched(chunk: Chunk, clip_skip: int = 0) -> None:
        encoded.append(chunk)
        encode(chunk, clip_skip)

    monkeypatch.setattr(encoder, "encode", watched)
    made = conditions(encoder)
    made.read(said("a red star", "a red star"))
    unguided, guided = filled(made)
    assert len(encoded) == 1
    assert (unguided == guided).all()
    made.read(script("a [red|green] star", "a red star", 20))
    assert len(encoded) == 3


def test_zeros_stand_for_a_text_that_is_none(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    for negative, zeros in (("", True), (" ", False), ("green", False), ("", True)):
        made.read(said("a red star", negative, zeros_for_empty=True))
        unguided, guided = filled(made)
        assert (not unguided.any()) == zeros
        assert guided.any()


def by_transformers(texts: Sequence[str], skipped: int = 0) -> np.ndarray:
    """The contexts of texts of one chunk each."""
    tokenizer = CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    model = CLIPTextModel.from_pretrained(CHECKPOINT / "text_encoder", dtype=torch.float32)
    ids = tokenizer(list(texts), padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        return np.array(model.final_layer_norm(states[-1 - skipped]))


FIRST, SECOND = "red circle, " * 25, "a green star"


def test_a_long_text_is_its_chunks_one_after_the_other(encoder: TextEncoder) -> None:
    """And what is shorter goes on with a chunk that says nothing."""
    made = conditions(encoder)
    made.read(said(FIRST + SECOND, "blue"))
    assert made.tokens == 154
    first, second, blue, nothing = by_transformers([FIRST, SECOND, "blue", ""])
    expected = [[*blue, *nothing], [*first, *second]]
    np.testing.assert_allclose(filled(made), expected, atol=2e-5)
    made.read(said("a red star"))
    assert made.tokens == 77
    assert filled(made, rows=1).shape == (1, 77, 96)


def test_break_begins_the_next_chunk(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    made.read(said("red circle BREAK (blue star:1.0)"))
    first, second = by_transformers(["red circle", "blue star"])
    np.testing.assert_allclose(filled(made, rows=1), [[*first, *second]], atol=2e-5)


def test_weights_multiply_tokens_and_keep_the_mean(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    for text, weights in (
        ("a (red:1.4) circle", [1, 1, 1.4, 1]),
        ("a [red] circle", [1, 1, 1 / 1.1, 1]),
        ("((a red:0.5) circle:1.2)", [1, 0.6, 0.6, 1.2]),
    ):
        made.read(said(text))
        (z,) = by_transformers(["a red circle"])
        weighted = z * np.array(weights + [1] * 73)[:, None]
        expected = weighted * (z.mean() / weighted.mean())
        np.testing.assert_allclose(filled(made, rows=1)[0], expected, atol=1e-4)
    made.read(said("(a red circle:1.0)"))
    np.testing.assert_allclose(filled(made, rows=1)[0], z, atol=2e-5)


def test_weights_that_turn_the_mean_leave_it(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    made.read(said("a (green:200) star"))
    (z,) = by_transformers(["a green star"])
    weighted = z * np.array([1, 1, 200, *[1] * 74])[:, None]
    assert z.mean() / weighted.mean() < 0
    np.testing.assert_allclose(filled(made, rows=1)[0], weighted, rtol=1e-4, atol=1e-3)


def test_clip_skip_leaves_out_the_last_layers(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    assert encoder.skippable == 2
    for skipped in (1, 2, 0):
        made.read(said("a red circle"), clip_skip=skipped)
        expected = by_transformers(["a red circle"], skipped)
        np.testing.assert_allclose(filled(made, rows=1), expected, atol=2e-5)
    for wrong in (3, -1):
        with pytest.raises(InvalidRequest, match=f"clip_skip is {wrong}; it must be from 0 to 2"):
            made.read(said("a red circle"), clip_skip=wrong)


def test_a_bundle_without_earlier_layers_refuses_clip_skip(copied: Path) -> None:
    file = copied / "text_encoder.onnx"
    model = onnx.load(file, load_external_data=False)
    (hidden,) = (output for output in model.graph.output if output.name == "hidden")
    model.graph.output.remove(hidden)
    onnx.save(model, file)
    older = TextEncoder(open_engine(file, "onnxruntime"), load_tokenizer(TOKENIZER), 77)
    made = conditions(older)
    made.read(said("a red circle"))
    with pytest.raises(InvalidRequest, match="export the bundle again"):
        made.read(said("a red circle"), clip_skip=1)


def test_rows_follow_the_steps_of_a_script(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    texts = ["blue", "red circle", "green circle", "star"]
    made.read(script("[red|green] circle AND star:0.5", "blue", 4))
    blue, red, green, star = by_transformers(texts)
    for step, colour in enumerate((red, green, red, green)):
        found = filled(made, rows=3, steps=(step,))
        np.testing.assert_allclose(found, [blue, colour, star], atol=2e-5)
    tensor = UNET["context"].empty(6, 77)
    made.fill({"context": tensor}, 3, 1, steps=(0, 1))
    expected = [blue, blue, red, green, star, star]
    np.testing.assert_allclose(np.array(tensor), expected, atol=2e-5)


def test_sizes_are_those_of_diffusers() -> None:
    assert sizes(768, 512, 6, GUIDED) == sizes(768, 512, 6, UNGUIDED) == (512, 768, 0, 0, 512, 768)
    assert sizes(768, 512, 5, GUIDED) == (512, 768, 0, 0, 6.0)
    assert sizes(768, 512, 5, UNGUIDED) == (512, 768, 0, 0, 2.5)


def test_rows_are_repeated_for_every_image(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    made.read(said("a red star", "a green ring"))
    both = filled(made)
    for rows, times in ((1, 1), (1, 3), (2, 1), (2, 3)):
        tensors = {
            "context": UNET["context"].empty(rows * times, 77),
            "other": Tensor.zeros((1,), "f32"),
        }
        made.fill(tensors, rows, times)
        assert (np.asarray(tensors["context"]) == both[-rows:].repeat(times, axis=0)).all()
        assert not np.asarray(tensors["other"]).any()


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(file)
