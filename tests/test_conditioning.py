from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdfast import store
from sdfast.backends import open_engine
from sdfast.conditioning import TextEncoder, load_tokenizer, tokens
from sdfast.errors import BundleError, InvalidRequest

DEMO = store.load("demo")
TOKENIZER = DEMO.path / DEMO.manifest.tokenizer


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    context = DEMO.manifest.context
    engine = open_engine(DEMO.network("text_encoder"))
    return TextEncoder(engine, load_tokenizer(TOKENIZER), context.tokens, context.width)


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


def test_a_text_gets_its_context_in_either_row(encoder: TextEncoder) -> None:
    encoder.encode([("negative prompt", ""), ("prompt", "a red star")])
    both = np.array(encoder.context)
    encoder.encode([("prompt", "a red star")])
    alone = np.array(encoder.context)
    assert np.abs(both[1] - alone[0]).max() < 1e-5
    assert np.abs(both[1] - alone[1]).max() < 1e-5
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(file)
