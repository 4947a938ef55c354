from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdfast import store
from sdfast.backends import open_engine
from sdfast.conditioning import (
    GUIDED,
    UNGUIDED,
    Conditions,
    TextEncoder,
    load_tokenizer,
    sizes,
    tokens,
)
from sdfast.errors import BundleError, InvalidRequest

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
    engine = open_engine(DEMO.network("text_encoder"))
    return TextEncoder(engine, load_tokenizer(TOKENIZER), DEMO.context.tokens)


@pytest.mark.parametrize("text", ["", "a red circle", "A RED  Circle,on\nblue!", "żółty 红 🙂 2 '"])
def test_tokens_are_those_of_transformers(text: str) -> None:
    from transformers import CLIPTokenizer

    folder = Path(__file__).parent.parent / "export" / "demo" / "checkpoint" / "tokenizer"
    theirs = CLIPTokenizer.from_pretrained(folder)
    expected = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
    assert tokens(load_tokenizer(TOKENIZER), "prompt", text, 77) == expected


def test_a_prompt_that_is_too_long_is_refused_with_its_length() -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    assert len(tokens(tokenizer, "prompt", "red " * 75, 77)) == 77
    with pytest.raises(InvalidRequest, match="the prompt has 76 tokens; the model reads 75"):
        tokens(tokenizer, "prompt", "red " * 76, 77)


def test_a_tokenizer_that_pads_to_another_length_is_refused() -> None:
    with pytest.raises(BundleError, match="pads to 77 tokens, the model reads 80"):
        tokens(load_tokenizer(TOKENIZER), "prompt", "a red star", 80)


def conditions(encoder: TextEncoder, zeros_for_empty: bool = False) -> Conditions:
    context = replace(DEMO.context, zeros_for_empty=zeros_for_empty)
    return Conditions([encoder], None, UNET, context)


def test_a_text_has_the_same_context_bit_for_bit_in_either_row(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    made.read("a red star", "a green ring")
    (green, red) = np.array(made.rows["context"])
    assert np.abs(red - green).max() > 0.1
    made.read("a green ring", None)
    assert (np.asarray(made.rows["context"])[GUIDED] == green).all()
    made.read("a green ring", "a red star")
    assert (np.asarray(made.rows["context"]) == [red, green]).all()


def test_equal_texts_are_encoded_once(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = encoder.encode

    def watched(name: str, text: str) -> None:
        encoded.append(text)
        encode(name, text)

    monkeypatch.setattr(encoder, "encode", watched)
    made = conditions(encoder)
    made.read("a red star", "a red star")
    unguided, guided = np.asarray(made.rows["context"])
    assert encoded == ["a red star"]
    assert (unguided == guided).all()


def test_an_empty_negative_prompt_is_zeros_where_the_model_was_trained_so(
    encoder: TextEncoder,
) -> None:
    made = conditions(encoder, zeros_for_empty=True)
    for negative, zeros in (("", True), (" ", False), ("green", False), ("", True)):
        made.read("a red star", negative)
        assert (not np.asarray(made.rows["context"])[UNGUIDED].any()) == zeros
        assert np.asarray(made.rows["context"])[GUIDED].any()


def test_sizes_are_those_of_diffusers() -> None:
    assert sizes(768, 512, 6, GUIDED) == sizes(768, 512, 6, UNGUIDED) == (512, 768, 0, 0, 512, 768)
    assert sizes(768, 512, 5, GUIDED) == (512, 768, 0, 0, 6.0)
    assert sizes(768, 512, 5, UNGUIDED) == (512, 768, 0, 0, 2.5)


def test_rows_are_repeated_for_every_image(encoder: TextEncoder) -> None:
    made = conditions(encoder)
    made.read("a red star", "a green ring")
    both = np.asarray(made.rows["context"])
    for rows, times in ((1, 1), (1, 3), (2, 1), (2, 3)):
        filled = {"context": UNET["context"].empty(rows * times, 77), "other": made.rows["context"]}
        made.fill(filled, rows, times)
        assert (np.asarray(filled["context"]) == both[-rows:].repeat(times, axis=0)).all()


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(file)
