"""Where checkpoints come from: folders as they are found, and what is said of wrong ones."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdfast.errors import CheckpointError
from sdfast.export import random_checkpoint, sources
from sdfast.export.demo.models import CHECKPOINT

UNET = "unet/diffusion_pytorch_model.safetensors"
Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """family → its folder, written once."""
    place = tmp_path_factory.mktemp("folders")

    def folder(family: str) -> Path:
        made = place / family
        return made if made.exists() else random_checkpoint(family, made)

    return folder


@pytest.fixture
def sd15(folders: Folders, tmp_path: Path) -> Path:
    """A tiny SD 1.5 to damage."""
    return Path(shutil.copytree(folders("tiny-sd15"), tmp_path / "sd15"))


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("tiny-sd15", ("sd1", "text", "epsilon")),
        ("tiny-sd21", ("sd2", "text", "v_prediction")),
        ("tiny-sd-turbo", ("sd2", "text", "epsilon")),
        ("tiny-sdxl", ("sdxl", "text", "epsilon")),
        ("tiny-sdxl-turbo", ("sdxl", "text", "epsilon")),
        ("tiny-sdxl-refiner", ("sdxl-refiner", "text", "epsilon")),
        ("tiny-lcm", ("sd1", "text", "epsilon")),
        ("tiny-sd15-inpaint", ("sd1", "inpaint", "epsilon")),
        ("tiny-instruct-pix2pix", ("sd1", "edit", "epsilon")),
        ("tiny-sd15-controlnet", ("sd1", "control", "epsilon")),
        ("tiny-sdxl-controlnet", ("sdxl", "control", "epsilon")),
        ("tiny-sd15-t2i-adapter", ("sd1", "control", "epsilon")),
        ("tiny-sdxl-t2i-adapter", ("sdxl", "control", "epsilon")),
    ],
)
def test_family_task_and_prediction_are_told(
    folders: Folders, family: str, told: tuple[str, str, str]
) -> None:
    read = sources.read(folders(family))
    assert (read.family, read.task, read.prediction) == told
    assert read.source == str(folders(family))


def test_the_demo_is_of_sd_1() -> None:
    read = sources.read(CHECKPOINT)
    assert (read.family, read.task, read.prediction) == ("sd1", "text", "epsilon")
    assert {w.dtype for w in read.components["unet"].weights.values()} == {torch.float16}


def test_what_is_detected_can_be_overridden_where_nothing_contradicts(folders: Folders) -> None:
    read = sources.read(folders("tiny-sd15"), prediction="v_prediction", family="sd1")
    assert read.prediction == read.scheduler["prediction_type"] == "v_prediction"
    assert sources.read(folders("tiny-sd15-controlnet"), family="sd2").family == "sd2"
    for family, reason in (
        ("sdxl", "is of family sd1, not sdxl: its text encoder's activation is quick_gelu"),
        ("sd2", "is of family sd1, not sd2"),
        ("sd3", "family 'sd3' is unknown; did you mean .* known: sd1, sd2, sdxl, sdxl-refiner"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            sources.read(folders("tiny-sd15"), family=family)
    with pytest.raises(CheckpointError, match=r"'velocity' is unknown.*known: epsilon, v_pred"):
        sources.read(folders("tiny-sd15"), prediction="velocity")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the mappings")
def test_weights_are_views_of_the_mapped_file(folders: Folders) -> None:
    folder = folders("tiny-sd15")
    weights = sources.read(folder).components["unet"].weights
    mappings = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(folder / UNET))
    ]
    for weight in weights.values():
        assert any(start <= weight.data_ptr() < end for start, end in mappings)


def test_the_file_without_variant_comes_before_fp16(sd15: Path) -> None:
    plain = sd15 / UNET
    weights = {name: weight.half() for name, weight in load_file(plain).items()}
    save_file(weights, sd15 / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    first = "conv_in.weight"
    assert sources.read(sd15).components["unet"].weights[first].dtype == torch.float32
    plain.unlink()
    assert sources.read(sd15).components["unet"].weights[first].dtype == torch.float16


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read_through_their_index(folders: Folders, sd15: Path, variant: str) -> None:
    shard(sd15, variant)
    ours = sources.read(sd15).components["unet"].weights
    theirs = sources.read(folders("tiny-sd15")).components["unet"].weights
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def shard(folder: Path, variant: str = "") -> Path:
    weights = load_file(folder / UNET)
    (folder / UNET).unlink()
    places = {}
    for k in (1, 2):
        name = f"diffusion_pytorch_model{variant}-0000{k}-of-00002.safetensors"
        part = {key: weights[key] for key in sorted(weights)[k - 1 :: 2]}
        save_file(part, folder / "unet" / name)
        places |= dict.fromkeys(part, name)
    index = folder / "unet" / f"diffusion_pytorch_model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_names_of_older_libraries_are_read(folders: Folders, sd15: Path) -> None:
    vae = sd15 / "vae" / "diffusion_pytorch_model.safetensors"
    aged = {}
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, weight in load_file(vae).items():
        for new, older in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{older}.")
        aged[name] = weight
    assert any("proj_attn" in name for name in aged)
    save_file(aged, vae)
    text = sd15 / "text_encoder" / "model.safetensors"
    prefixed = {f"text_model.{name}": weight for name, weight in load_file(text).items()}
    prefixed["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(prefixed, text)
    ours, theirs = sources.read(sd15), sources.read(folders("tiny-sd15"))
    for part in ("vae", "text_encoder"):
        one, other = ours.components[part].weights, theirs.components[part].weights
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["tiny-sd15", "tiny-sd21", "tiny-sdxl"])
def test_tokenizers_of_vocabulary_and_merges_give_the_same_tokens(
    folders: Folders, tmp_path: Path, family: str
) -> None:
    whole = folders(family)
    copied = Path(shutil.copytree(whole, tmp_path / family))
    for file in copied.glob("tokenizer*/tokenizer.json"):
        file.unlink()
    ours, theirs = sources.read(copied).tokenizers, sources.read(whole).tokenizers
    assert ours.keys() == theirs.keys()
    texts = ["A red  circle, on blue!", "", "it's 3 <|endoftext|> dots", "Ünïcode ✓", "word " * 99]
    for name in ours:
        ids = [encoding.ids for encoding in ours[name].encode_batch(texts)]
        assert ids == [encoding.ids for encoding in theirs[name].encode_batch(texts)]
        assert {len(tokens) for tokens in ids} == {77}


def test_the_special_tokens_map_decides_on_padding_as_in_sd_2s_published_files(
    folders: Folders, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(folders("tiny-sd21"), tmp_path / "sd21"))
    config = copied / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"!"', '"<|endoftext|>"'))
    assert sources.read(copied).tokenizers["tokenizer"].encode("red").ids[-1] == 0
    (copied / "tokenizer" / "special_tokens_map.json").unlink()
    assert sources.read(copied).tokenizers["tokenizer"].encode("red").ids[-1] == 999


@pytest.mark.parametrize("family", ["tiny-sdxl", "tiny-taesd"])
def test_another_vae_replaces_the_checkpoints(folders: Folders, family: str) -> None:
    other = folders(family)
    read = sources.read(folders("tiny-sd15"), vae=other)
    place = other / "vae" if family == "tiny-sdxl" else other
    expected = load_file(place / "diffusion_pytorch_model.safetensors")
    assert read.components["vae"].kind == (
        "AutoencoderKL" if family == "tiny-sdxl" else "AutoencoderTiny"
    )
    assert all(torch.equal(read.components["vae"].weights[k], w) for k, w in expected.items())
    picture = read.components["vae"].module().decode(torch.zeros(1, 4, 4, 4)).sample
    assert picture.shape == (1, 3, 32, 32)


def test_another_tokenizer_pads_as_the_text_encoder_was_trained(folders: Folders) -> None:
    words = folders("tiny-sd15") / "tokenizer"
    read = sources.read(folders("tiny-sdxl"), tokenizer=words)
    ends = [read.tokenizers[name].encode("red").ids[-1] for name in ("tokenizer", "tokenizer_2")]
    assert ends == [999, 0]


@pytest.mark.parametrize("source", ["nowhere", "/no/such/folder", "owner/name/file", "a/b.ckpt"])
def test_a_source_that_is_not_there_is_told_the_forms(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"there is no .*diffusers' layout.*owner/name"):
        sources.read(source)


def unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        found = load_file(folder / UNET)
        change(found)
        save_file(found, folder / UNET)

    return rewrite


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / UNET).write_bytes(change((folder / UNET).read_bytes())) and None


def overlap(content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / UNET), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / UNET).unlink()


def escaping(folder: Path) -> None:
    index = shard(folder)
    index.write_text(index.read_text().replace("diffusion_pytorch_model-00001", "../../x"))


def without_a_shard(folder: Path) -> None:
    shard(folder)
    next((folder / "unet").glob("*00002-of*")).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unlink("model_index.json"), r"model_index.json cannot be read"),
        (edit("model_index.json", "{", "["), r"model_index.json cannot be read"),
        (edit("model_index.json", '"unet"', '"transformer"'), "unet is missing from .* a Stable"),
        (unlink("unet/config.json"), r"unet/config.json cannot be read"),
        (unlink(UNET), "unet has no .safetensors file"),
        (unlink("scheduler/scheduler_config.json"), "scheduler_config.json cannot be read"),
        (lambda p: shutil.rmtree(p / "vae"), "vae/config.json cannot be read"),
        (lambda p: shutil.rmtree(p / "tokenizer"), "tokenizer has no tokenizer.json, nor vocab"),
        (edit("tokenizer/tokenizer.json", "{", "["), "tokenizer.json cannot be read"),
        (
            edit("text_encoder/config.json", '"CLIPTextModel"', '"T5EncoderModel"'),
            "is a T5EncoderModel; the exporter takes CLIPTextModel",
        ),
        (edit("unet/config.json", '"in_channels": 4', '"in_channels": 7'), r"conv_in.weight of"),
        (edit("unet/config.json", "UpBlock2D", "SkyBlock"), "can be built from its config"),
        (
            edit("text_encoder/config.json", '"vocab_size": 1000', '"vocab_size": 500'),
            r"token_embedding.weight of .* has the shape \[1000, 64\]; .* has \[500, 64\]",
        ),
        (weights(lambda w: w.pop("conv_in.bias")), "conv_in.bias is missing from"),
        (weights(lambda w: w.update(extra=torch.ones(2))), "unet holds extra, which"),
        (weights(lambda w: w["conv_in.bias"].fill_(torch.nan)), "conv_in.bias of .* holds NaN"),
        (weights(lambda w: w["conv_in.bias"].fill_(-torch.inf)), "conv_in.bias of .* or infinity"),
        (raw(lambda b: b[:5000]), "it is damaged, cut short"),
        (raw(lambda b: b[:-4]), "it is damaged, cut short"),
        (raw(lambda b: b""), "it is damaged, cut short"),
        (raw(lambda b: b"\xff" * 8 + b[8:]), "it is damaged, cut short"),
        (raw(overlap), "it is damaged, cut short"),
        (pickled, r"diffusion_pytorch_model.bin is a pickle.*--allow-pickle"),
        (escaping, "points to '../../x-of-00002.safetensors'; shards are"),
        (without_a_shard, "00002-of-00002.safetensors cannot be read"),
    ],
)
def test_a_folder_that_is_wrong_says_what(
    sd15: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(sd15)
    with pytest.raises(CheckpointError, match=message) as caught:
        sources.read(sd15)
    assert str(sd15) in str(caught.value)


def test_a_folder_of_pickles_is_read_when_it_is_asked_for(folders: Folders, sd15: Path) -> None:
    pickled(sd15)
    ours = sources.read(sd15, allow_pickle=True).components["unet"].weights
    theirs = sources.read(folders("tiny-sd15")).components["unet"].weights
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_not_a_number_is_found_wherever_it_is(sd15: Path) -> None:
    name = "up_blocks.0.resnets.0.conv1.weight"
    clean = load_file(sd15 / UNET)[name]
    for place in (0, clean.numel() // 2, clean.numel() - 1):
        poisoned = load_file(sd15 / UNET)
        poisoned[name] = clean.clone()
        poisoned[name].view(-1)[place] = torch.nan
        save_file(poisoned, sd15 / UNET)
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)} of .* holds NaN"):
            sources.read(sd15)


def test_a_vae_alone_is_no_checkpoint(folders: Folders) -> None:
    with pytest.raises(CheckpointError, match=r"is an AutoencoderTiny alone.*--vae FOLDER"):
        sources.read(folders("tiny-taesd"))


def test_a_single_file_without_tokenizer_says_where_to_get_one(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdfast.export.random_models import single_file

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    file = single_file(folders("tiny-sd15"), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.*--tokenizer FOLDER"):
        sources.read(file)
    words = folders("tiny-sd15") / "tokenizer"
    snapshot = tmp_path / "cache" / "models--openai--clip-vit-large-patch14"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("b" * 40)
    shutil.copytree(words, snapshot / "snapshots" / ("b" * 40))
    assert sources.read(file).tokenizers["tokenizer"].encode("red").ids[-1] == 999


def test_a_tokenizer_of_another_model_is_refused(folders: Folders, tmp_path: Path) -> None:
    words = Path(shutil.copytree(folders("tiny-sd15") / "tokenizer", tmp_path / "words"))
    (words / "tokenizer.json").unlink()
    vocabulary = json.loads((words / "vocab.json").read_text())
    (words / "vocab.json").write_text(json.dumps(vocabulary | {"more": 1000}))
    with pytest.raises(CheckpointError, match=r"tokens up to 1000, the text encoder 1000"):
        sources.read(folders("tiny-sd15"), tokenizer=words)
