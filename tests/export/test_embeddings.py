"""Textual-inversion embeddings against diffusers' load_textual_inversion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from sdfast.errors import CheckpointError
from sdfast.export import embeddings
from sdfast.export.components import Checkpoint, Component
from sdfast.export.demo import models

WIDTHS = {"text_encoder": 16, "text_encoder_2": 24}
KINDS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
PROMPTS = (
    "a {} on a table",
    "{}",
    "a red circle",
    "A {}_1 circle",
    "red{}blue, {} {}",
    "({}:1.2), small",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return models.train_tokenizer(models.captions(100))


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    models.save_tokenizer(tokenizer, place)
    return place


def made(tokenizer: Tokenizer, *encoders: str, family: str = "sd1", end: int = -1) -> Checkpoint:
    """A checkpoint of text encoders; `end` is what their configurations call the end of text."""
    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    components = {}
    for name in encoders:
        config = CLIPTextConfig(
            vocab_size=size,
            hidden_size=WIDTHS[name],
            intermediate_size=32,
            projection_dim=WIDTHS[name],
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=size - 2,
            eos_token_id=end if end >= 0 else size - 1,
        )
        module = KINDS[name](config)
        components[name] = Component(
            type(module).__name__,
            config.to_dict(),
            {k: v.half() for k, v in module.state_dict().items()},
        )
    tokenizers = {embeddings.TOKENIZERS[name]: tokenizer for name in encoders}
    return Checkpoint("tiny", family, "text", "epsilon", components, {}, tokenizers)


def encoder(component: Component) -> CLIPTextModel:
    kinds = {kind.__name__: kind for kind in KINDS.values()}
    module = kinds[component.kind](CLIPTextConfig(**component.config))
    module.load_state_dict({name: weight.float() for name, weight in component.weights.items()})
    return module.eval().requires_grad_(False)


def ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """What the runtime gets: it knows no more than tokenizer.json."""
    return Tokenizer.from_str(tokenizer.to_str()).encode(prompt).ids


def pipeline(checkpoint: Checkpoint, folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=None,
        unet=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=encoder(checkpoint.components["text_encoder"]),
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize(
    ("token", "vectors"),
    [("<cat-toy>", 1), ("<cat-toy>", 4), ("<Cat-Toy>", 1), ("bad.*$1 dream", 12)],
)
def test_prompts_have_diffusers_ids_and_contexts(
    tokenizer: Tokenizer, folder: Path, tmp_path: Path, token: str, vectors: int
) -> None:
    before = made(tokenizer, "text_encoder")
    torch.manual_seed(1)
    learned = torch.randn(vectors, WIDTHS["text_encoder"]).half()
    save_file({token: learned}, tmp_path / "learned.safetensors")
    ours, report = embeddings.add(before, tmp_path / "learned.safetensors")
    assert (report.token, report.vectors) == (token, vectors)
    assert (
        ours.components["text_encoder"].config["vocab_size"] == len(tokenizer.get_vocab()) + vectors
    )
    pipe = pipeline(before, folder)
    pipe.load_textual_inversion(str(tmp_path), weight_name="learned.safetensors")
    module = encoder(ours.components["text_encoder"])
    for prompt in (text.replace("{}", token) for text in PROMPTS):
        converted = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
        theirs = pipe.tokenizer(converted, padding="max_length", max_length=77).input_ids
        assert ids(ours.tokenizers["tokenizer"], prompt) == theirs
        context, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        # The same weights and tokens through the same network.
        torch.testing.assert_close(module(torch.tensor([theirs])).last_hidden_state, context)


def test_a_word_with_capitals_stands_for_all_its_vectors_in_any_case(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """With transformers 5, diffusers finds only the first vector of such a word."""
    save_file({"<Cat-Toy>": torch.ones(3, 16)}, tmp_path / "toy.safetensors")
    added, _ = embeddings.add(made(tokenizer, "text_encoder"), tmp_path / "toy.safetensors")
    size = tokenizer.get_vocab_size()
    for word in ("<Cat-Toy>", "<cat-toy>", "<CAT-TOY>"):
        found = ids(added.tokenizers["tokenizer"], f"a {word} circle")
        expected = ids(tokenizer, "a circle")
        assert found == [*expected[:2], *range(size, size + 3), *expected[2:-3]]


def test_several_embeddings_may_hold_each_others_names(
    tokenizer: Tokenizer, folder: Path, tmp_path: Path
) -> None:
    for words in (("<toy>", "<toy>box"), ("<toy>box", "<toy>")):
        theirs = CLIPTokenizer.from_pretrained(folder)
        checkpoint = made(tokenizer, "text_encoder")
        for k, word in enumerate(words):
            save_file({word: torch.ones(k + 2, 16)}, tmp_path / "one.safetensors")
            checkpoint, _ = embeddings.add(checkpoint, tmp_path / "one.safetensors")
            theirs.add_tokens([word, *(f"{word}_{n}" for n in range(1, k + 2))])
        convert = pipeline(checkpoint, folder).maybe_convert_prompt
        for word in words:
            for prompt in (text.replace("{}", word) for text in PROMPTS):
                expected = theirs(convert(prompt, theirs), padding="max_length", max_length=77)
                assert ids(checkpoint.tokenizers["tokenizer"], prompt) == expected.input_ids


def test_sdxls_file_goes_into_both_encoders_under_the_files_name(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    before = made(tokenizer, "text_encoder", "text_encoder_2", family="sdxl")
    size = tokenizer.get_vocab_size()
    torch.manual_seed(2)
    learned = {"clip_l": torch.randn(2, 16), "clip_g": torch.randn(2, 24)}
    save_file(learned, tmp_path / "zzstyle.safetensors")
    ours, report = embeddings.add(before, tmp_path / "zzstyle.safetensors")
    assert str(report) == "zzstyle.safetensors: 'zzstyle' stands for 2 vectors"
    for name, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        (table,) = (
            weight for at, weight in ours.components[name].weights.items() if "token_emb" in at
        )
        assert torch.equal(table[size:], learned[key].half())
        assert ids(ours.tokenizers[embeddings.TOKENIZERS[name]], "zzstyle")[1:3] == [size, size + 1]
        shared = ours.components[name].weights, before.components[name].weights
        assert sum(shared[0][at] is not shared[1][at] for at in shared[0]) == 1
    assert tokenizer.get_vocab_size() == size  # the checkpoint that was given is as it was


def test_a1111s_file_is_called_after_itself_or_as_asked(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    before = made(tokenizer, "text_encoder")
    file = tmp_path / "badhandsv4.safetensors"
    save_file({"emb_params": torch.ones(1, 16)}, file)
    assert embeddings.add(before, file)[1].token == "badhandsv4"
    added, report = embeddings.add(before, file, "<hands>")
    assert report.token == "<hands>"
    size = tokenizer.get_vocab_size()
    assert ids(added.tokenizers["tokenizer"], "<hands>")[:3] == [size - 2, size, size - 1]
    assert size not in ids(added.tokenizers["tokenizer"], "badhandsv4")


def test_the_pooled_output_is_taken_at_the_end_of_text_with_old_configurations(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """SDXL's second encoder says eos_token_id 2, upon which transformers takes the largest id."""
    size = tokenizer.get_vocab_size()
    save_file({"<toy>": torch.randn(3, 16)}, tmp_path / "toy.safetensors")
    old = made(tokenizer, "text_encoder", end=2)
    new = made(tokenizer, "text_encoder")
    prompt = torch.tensor([ids(tokenizer, "a red circle")])
    one, two = (encoder(each.components["text_encoder"]) for each in (old, new))
    assert torch.equal(one(prompt).pooler_output, two(prompt).pooler_output)
    added, _ = embeddings.add(old, tmp_path / "toy.safetensors")
    assert added.components["text_encoder"].config["eos_token_id"] == size - 1
    word = torch.tensor([ids(added.tokenizers["tokenizer"], "a <toy> here")])
    output = encoder(added.components["text_encoder"])(word)
    at = word[0].tolist().index(size - 1)
    assert int(word.argmax()) != at  # the old rule would take the embedding's place
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, at])


def test_rows_that_the_tokenizer_does_not_use_are_taken_first(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = made(tokenizer, "text_encoder")
    encoder = checkpoint.components["text_encoder"]
    name = "embeddings.token_embedding.weight"
    size = tokenizer.get_vocab_size()
    padded = torch.cat([encoder.weights[name], torch.full((8, 16), 7.0).half()])
    wider = Component(encoder.kind, encoder.config, {**encoder.weights, name: padded})
    checkpoint.components["text_encoder"] = wider  # type: ignore[index]
    save_file({"<toy>": torch.ones(3, 16)}, tmp_path / "toy.safetensors")
    after = embeddings.add(checkpoint, tmp_path / "toy.safetensors")[0].components["text_encoder"]
    assert after.config["vocab_size"] == size + 8
    assert after.weights[name][size:, 0].tolist() == [1, 1, 1, 7, 7, 7, 7, 7]


@pytest.mark.parametrize("vectors", [1, 3])
def test_words_that_the_vocabulary_has_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, vectors: int
) -> None:
    checkpoint = made(tokenizer, "text_encoder")
    file = tmp_path / "learned.safetensors"
    save_file({"<toy>": torch.ones(vectors, 16)}, file)
    once, _ = embeddings.add(checkpoint, file)
    for known, word in ((once, "<toy>"), (once, "<TOY>"), (checkpoint, "circle")):
        with pytest.raises(CheckpointError, match="already: give the embedding another"):
            embeddings.add(known, file, word)
    for word in ("", " "):
        with pytest.raises(CheckpointError, match="cannot be a token"):
            embeddings.add(checkpoint, file, word)


def test_files_that_do_not_belong_here_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sd1 = made(tokenizer, "text_encoder")
    sdxl = made(tokenizer, "text_encoder", "text_encoder_2", family="sdxl")
    both = {"clip_l": torch.ones(1, 16), "clip_g": torch.ones(1, 24)}
    cases = (
        (
            sd1,
            {"<x>": torch.ones(1, 1024)},
            "vectors of 1024 numbers and the text_encoder takes 16",
        ),
        (sd1, both, "made for SDXL .*; tiny is sd1"),
        (sdxl, {"<x>": torch.ones(1, 16)}, "no vectors for both text encoders"),
        (sdxl, {**both, "clip_g": torch.ones(2, 24)}, "not one number of vectors"),
        (sd1, {"<x>": torch.ones(0, 16)}, "not one number of vectors"),
        (sd1, {"<x>": torch.full((1, 16), torch.nan)}, "no table of finite numbers"),
        (sd1, {"<x>": torch.ones(1, 1, 16)}, "no table of finite numbers"),
        (sd1, {"a": torch.ones(1), "b": torch.ones(1)}, "holds a, b; known are emb_params"),
    )
    file = tmp_path / "other.safetensors"
    for checkpoint, tensors, message in cases:
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=message):
            embeddings.add(checkpoint, file, "<x>")
    torch.save({}, tmp_path / "learned.bin")
    with pytest.raises(CheckpointError, match="can run any program"):
        embeddings.add(sd1, tmp_path / "learned.bin")
