"""The demo model's parts: configurations, tokenizer, and its checkpoint in diffusers' layout."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel

from . import scenes

TOKENS = 77
CONTEXT = 96
START, END = "<|startoftext|>", "<|endoftext|>"
CHECKPOINT = Path(__file__).parent / "checkpoint"
SCHEDULER = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def vae() -> AutoencoderKL:
    """8× downsampling, 4 latent channels, no attention: it works at every size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        norm_num_groups=4,  # fewer channels a group could not tell flat colours apart
        mid_block_add_attention=False,
        sample_size=scenes.SIDE,
    )


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """Two layers. `vocabulary` counts the tokens; the last is the end-of-text token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=CONTEXT,
            intermediate_size=4 * CONTEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=CONTEXT,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def unet() -> UNet2DConditionModel:
    """Three levels (16, 8, 4 latents a side); text enters on the lower two and in the middle."""
    return UNet2DConditionModel(
        sample_size=scenes.SIDE // 8,
        block_out_channels=(48, 80, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CONTEXT,
        attention_head_dim=(3, 5, 4),  # diffusers reads these as numbers of heads: 16 channels each
        norm_num_groups=16,
    )


def train_tokenizer(captions: list[str]) -> Tokenizer:
    """Byte-pair encoding in CLIP's format (lower case, `</w>` ends a word), padded to 77 tokens
    with the end-of-text token as SD 1.x does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = _byte_pairs(models.BPE(end_of_word_suffix="</w>"))
    learner.train_from_iterator(
        captions,
        BpeTrainer(
            vocab_size=1000,
            min_frequency=2,
            end_of_word_suffix="</w>",
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # CLIP's vocabulary: bytes, bytes that end a word, merges, the two special tokens.
    words = alphabet + [byte + "</w>" for byte in alphabet] + [a + b for a, b in merges]
    vocabulary = {word: k for k, word in enumerate(dict.fromkeys([*words, START, END]))}
    tokenizer = _byte_pairs(
        models.BPE(vocabulary, merges, unk_token=END, end_of_word_suffix="</w>")
    )
    tokenizer.add_special_tokens([START, END])
    start, end = vocabulary[START], vocabulary[END]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=end, pad_token=END)
    return tokenizer


def _byte_pairs(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def captions(count: int, seed: int = 0) -> list[str]:
    """Training captions, none of a held-out combination."""
    rng = random.Random(seed)
    return [scenes.caption(scenes.sample(rng), rng) for _ in range(count)]


def tokens(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """i64 [len(texts), 77]."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json for the runtime, and CLIP's vocab.json and merges.txt for transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


@dataclass(frozen=True)
class Model:
    """The demo model as it was saved, in float32 and frozen."""

    tokenizer: Tokenizer
    text: CLIPTextModel
    denoiser: UNet2DConditionModel
    autoencoder: AutoencoderKL


def load(folder: Path = CHECKPOINT) -> Model:
    """Reads the checkpoint that `save` wrote."""
    kinds = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
    parts = [
        kind.from_pretrained(folder / name, torch_dtype=torch.float32).eval().requires_grad_(False)
        for name, kind in kinds.items()
    ]
    return Model(Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")), *parts)


def save(
    folder: Path,
    tokenizer: Tokenizer,
    text: CLIPTextModel,
    denoiser: UNet2DConditionModel,
    autoencoder: AutoencoderKL,
) -> None:
    """Writes the checkpoint: fp16 safetensors in diffusers' layout."""
    for part, name in ((text, "text_encoder"), (denoiser, "unet"), (autoencoder, "vae")):
        part.half().save_pretrained(folder / name, safe_serialization=True)
        part.float()
    SCHEDULER.save_pretrained(folder / "scheduler")
    save_tokenizer(tokenizer, folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
