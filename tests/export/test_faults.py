"""What can go wrong with an export, through the command itself: one clear sentence, its exit code,
and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from sdfast import bundle, cli
from sdfast.bundle import Bundle
from sdfast.export import export, random_checkpoint

UNET = "unet/diffusion_pytorch_model.safetensors"
Words = list[str]


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion 1.5, whole."""
    return random_checkpoint("tiny-sd15", tmp_path_factory.mktemp("checkpoints") / "sd15")


@pytest.fixture(scope="module")
def exported(sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle."""
    return export(sd15, tmp_path_factory.mktemp("bundles") / "sd15")


@pytest.fixture
def checkpoint(sd15: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sd15, tmp_path / "checkpoint"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The destination, in a folder of its own."""
    (tmp_path / "bundles").mkdir()
    return tmp_path / "bundles" / "made"


def exporting(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["export", *map(str, words)])


def message(done: Result, code: int = 2) -> str:
    """The one sentence that a refused export ends with."""
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("sdfast: "))
    assert done.stderr.endswith(f"{sentence}\n")
    return sentence


def left(made: Path) -> list[str]:
    return sorted(file.name for file in made.parent.iterdir())


def save_altered(checkpoint: Path, alter: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(checkpoint / UNET)
    alter(weights)
    save_file(weights, checkpoint / UNET)


def truncated(checkpoint: Path) -> Words:
    content = (checkpoint / UNET).read_bytes()
    (checkpoint / UNET).write_bytes(content[: len(content) // 2])
    return []


def header_of(length: int) -> Callable[[Path], Words]:
    def damage(checkpoint: Path) -> Words:
        content = (checkpoint / UNET).read_bytes()
        (checkpoint / UNET).write_bytes(length.to_bytes(8, "little") + content[8:])
        return []

    return damage


def not_a_number(checkpoint: Path) -> Words:
    save_altered(checkpoint, lambda weights: weights["conv_in.bias"].fill_(torch.nan))
    return []


def without(part: str) -> Callable[[Path], Words]:
    def damage(checkpoint: Path) -> Words:
        shutil.rmtree(checkpoint / part)
        return []

    return damage


def escaping_shards(checkpoint: Path) -> Words:
    names = list(load_file(checkpoint / UNET))
    (checkpoint / UNET).rename(checkpoint.parent / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(names, "../../outside.safetensors")}
    (checkpoint / f"{UNET}.index.json").write_text(json.dumps(index))
    return []


def lora_of_sdxl(checkpoint: Path) -> Words:
    layer = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    parts = {"lora_down.weight": torch.ones(2, 1280), "lora_up.weight": torch.ones(1280, 2)}
    file = checkpoint.parent / "xl.safetensors"
    save_file({f"{layer}.{part}": tensor for part, tensor in parts.items()}, file)
    return ["--lora", f"{file}:0.8"]


def unpickled(checkpoint: Path) -> Words:
    torch.save(load_file(checkpoint / UNET), checkpoint / "unet" / "diffusion_pytorch_model.bin")
    (checkpoint / UNET).unlink()
    return []


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def with_code(checkpoint: Path) -> Words:
    (checkpoint / UNET).unlink()
    content = pickle.dumps({"conv_in.bias": Touch(checkpoint.parent / "bundles" / "owned")})
    (checkpoint / "unet" / "diffusion_pytorch_model.bin").write_bytes(content)
    return ["--allow-pickle"]


def embedding_with_code(checkpoint: Path) -> Words:
    file = checkpoint.parent / "word.pt"
    file.write_bytes(pickle.dumps(Touch(checkpoint.parent / "bundles" / "owned")))
    return ["--embedding", str(file)]


def schedule(**entries: object) -> Callable[[Path], Words]:
    def damage(checkpoint: Path) -> Words:
        file = checkpoint / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))
        return []

    return damage


def config(part: str, **entries: object) -> Callable[[Path], Words]:
    def damage(checkpoint: Path) -> Words:
        file = checkpoint / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))
        return []

    return damage


def words(*given: str) -> Callable[[Path], Words]:
    return lambda checkpoint: list(given)


FAULTS: dict[str, tuple[Callable[[Path], Words], str]] = {
    "truncated weights": (truncated, r"unet.*safetensors cannot be read .*cut short"),
    "a header beyond all bounds": (header_of(2**64 - 1), "unet.*safetensors cannot be read"),
    "a header beyond the file": (header_of(2**26), "unet.*safetensors cannot be read"),
    "weights that are no numbers": (not_a_number, "conv_in.bias of .* holds NaN or infinity"),
    "no U-Net": (without("unet"), r"unet/config\.json cannot be read"),
    "no VAE": (without("vae"), r"vae/config\.json cannot be read"),
    "no tokenizer": (without("tokenizer"), r"tokenizer has no tokenizer\.json"),
    "no scheduler": (without("scheduler"), r"scheduler_config\.json cannot be read"),
    "another family": (words("--family", "sdxl"), "is of family sd1, not sdxl"),
    "an unknown family": (words("--family", "sd9"), "family 'sd9' is unknown"),
    "shards that lie outside": (escaping_shards, r"points to '\.\./\.\./outside\.safetensors'"),
    "a LoRA of another family": (lora_of_sdxl, r"xl\.safetensors seems to be made for SDXL"),
    "a LoRA that is not there": (words("--lora", "ink.safetensors"), r"ink\.safetensors"),
    "a pickle": (unpickled, r"\.bin is a pickle, which can run code .* --allow-pickle"),
    "a pickle with code": (with_code, r"\.bin cannot be read .*never loaded"),
    "an embedding with code": (
        embedding_with_code,
        r"word\.pt is not a \.safetensors file: pickles",
    ),
    "a VAE that is not there": (words("--vae", "nothing"), "there is no VAE nothing"),
    "betas one by one": (schedule(trained_betas=[0.1, 0.2]), "has trained_betas"),
    "betas of no schedule": (schedule(beta_schedule="cubic"), "'cubic' is unknown"),
    "betas of words": (schedule(beta_start="low"), "has no noise schedule .*'low'"),
    "betas without end": (schedule(num_train_timesteps=2**40), "from 2 to 100000"),
    "too few betas": (schedule(num_train_timesteps=1), "from 2 to 100000"),
    "latents of no scale": (config("vae", scaling_factor=0.0), "scaling_factor is 0.0"),
    "an unknown layer": (config("unet", act_fn="gelu"), "act_fn is 'gelu'; only 'silu'"),
    "groups of none": (config("unet", norm_num_groups=-1), "norm_num_groups is -1"),
    "an epsilon of words": (config("unet", norm_eps="small"), "norm_eps is 'small'; it must be"),
    "latents of no size": (config("unet", sample_size="large"), "sample_size is 'large'; it must"),
    "heads below one": (config("text_encoder", num_attention_heads=-1), "is below 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_clear_sentence_and_nothing_is_written(
    name: str, checkpoint: Path, made: Path
) -> None:
    damage, expected = FAULTS[name]
    done = exporting(checkpoint, made, *damage(checkpoint))
    assert re.search(expected, message(done))
    assert left(made) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Has writes beyond so many bytes fail, as on a full disk; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 8_000, 400_000, 1_800_000])
def test_no_space_on_the_disk_leaves_nothing(
    size: int, sd15: Path, exported: Bundle, made: Path
) -> None:
    """Each size is that of other files: graphs, the text encoder's, the U-Net's, the VAE's."""
    assert max(file.stat().st_size for file in exported.path.iterdir()) > size
    with files_of_at_most(size):
        done = exporting(sd15, made)
    assert re.search(r"made cannot be written \(File too large\)", message(done))
    assert left(made) == []


def test_a_killed_export_leaves_no_bundle_and_the_next_one_cleans_up(
    sd15: Path, made: Path
) -> None:
    command = [sys.executable, "-m", "sdfast", "export", str(sd15), str(made)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(made.parent.glob(".sdfast-export-*/text_encoder.onnx")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (rest,) = left(made)
    assert rest.startswith(".sdfast-export-made-")
    done = exporting(sd15, made)
    assert done.exit_code == 0, done.stderr
    assert left(made) == ["made"]
    bundle.load(made)


def unsteady(weights: dict[str, torch.Tensor]) -> None:
    """400 more on each weight of layers whose inputs add up to 0, so that it makes no difference;
    but float16 has no digits left for the weights' own."""
    for name, weight in weights.items():
        if name.endswith("norm3.weight"):
            weight.fill_(1.0)
        if name.endswith("norm3.bias"):
            weight.fill_(0.0)
        if name.endswith("ff.net.0.proj.weight"):
            weight += 400


def test_a_network_that_computes_something_else_is_refused_with_the_layer_where_it_begins(
    checkpoint: Path, made: Path
) -> None:
    save_altered(checkpoint, unsteady)
    assert exporting(checkpoint, made, "--precision", "fp32").exit_code == 0
    before = bundle.load(made)
    done = exporting(checkpoint, made, "--precision", "fp16", "--overwrite")
    sentence = message(done, code=1)
    assert "unet as exported differs from its module by" in sentence
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert f"which begins at {block}.ff.net.0, whose relative difference" in sentence
    assert left(made) == ["made"]
    assert bundle.load(made) == before  # what was there outlives it


def test_a_checkpoint_is_no_destination(sd15: Path, exported: Bundle) -> None:
    before = sorted(sd15.rglob("*"))
    for place in (sd15, sd15 / "bundle", sd15 / "unet"):
        assert "is in the checkpoint" in message(exporting(sd15, place, "--overwrite"))
    assert sorted(sd15.rglob("*")) == before


class TestGraphFrom:
    """Another bundle's graphs."""

    def test_of_another_architecture(self, exported: Bundle, made: Path, checkpoint: Path) -> None:
        random_checkpoint("tiny-sd15-inpaint", checkpoint.parent / "inpaint")
        done = exporting(checkpoint.parent / "inpaint", made, "--graph-from", exported.path)
        assert "the checkpoint is inpaint, bundle sd15 text: its graphs" in message(done)
        random_checkpoint("tiny-lcm", checkpoint.parent / "lcm")
        done = exporting(checkpoint.parent / "lcm", made, "--graph-from", exported.path)
        assert "time_projection is not of the architecture, layout and precision" in message(done)
        assert left(made) == []

    def test_of_a_controlnet(self, exported: Bundle, made: Path) -> None:
        random_checkpoint("tiny-sd15-controlnet", made.parent.parent / "control")
        done = exporting(made.parent.parent / "control", made, "--graph-from", exported.path)
        assert "the checkpoint is control, bundle sd15 text" in message(done)

    def test_of_no_bundle(self, sd15: Path, made: Path) -> None:
        done = exporting(sd15, made, "--graph-from", sd15)
        assert re.search("there is no bundle .*sd15", message(done))
        assert left(made) == []

    def test_of_a_damaged_bundle(self, sd15: Path, exported: Bundle, made: Path) -> None:
        other = Path(shutil.copytree(exported.path, made.parent.parent / "other"))
        (other / "bundle.json").write_text("{")
        done = exporting(sd15, made, "--graph-from", other)
        assert "bundle.json cannot be read" in message(done)
        assert left(made) == []

    @pytest.mark.parametrize("more", [("--recipe", "sd15"), ("--precision", "fp16")])
    def test_with_a_recipe_or_precision_of_ones_own(
        self, sd15: Path, exported: Bundle, made: Path, more: tuple[str, str]
    ) -> None:
        done = exporting(sd15, made, "--graph-from", exported.path, *more)
        assert "leave --recipe and --precision out" in message(done)
        assert left(made) == []

    def test_with_a_preview_that_it_has_no_graph_for(
        self, sd15: Path, exported: Bundle, made: Path
    ) -> None:
        preview = random_checkpoint("tiny-taesd", made.parent.parent / "taesd")
        done = exporting(sd15, made, "--graph-from", exported.path, "--preview", preview)
        assert "bundle sd15 has no graph for a preview" in message(done)

    def test_takes_sizes_and_defaults_along(self, sd15: Path, made: Path, tmp_path: Path) -> None:
        """Also of a recipe whose graphs are for one size."""
        text = (Path(__file__).parents[2] / "engines" / "sd15.toml").read_text()
        table = "minimum = 128, optimum = 128, maximum = 128"
        text, count = re.subn(r"minimum = \d+, optimum = 512, maximum = \d+", table, text)
        assert count == 2
        (tmp_path / "small.toml").write_text(text.replace('"dpmpp_2m"', '"euler"'))
        first = export(sd15, tmp_path / "first", recipe=tmp_path / "small.toml")
        done = exporting(sd15, made, "--graph-from", tmp_path / "first")
        assert done.exit_code == 0, done.stderr
        ours, theirs = bundle.load(made).manifest, first.manifest
        assert (ours.sizes, ours.defaults) == (theirs.sizes, theirs.defaults)
        assert ours.networks == theirs.networks
        assert ours.files == theirs.files
        assert ours.source == theirs.source


class TestLink:
    """The checkpoint's own files."""

    @pytest.mark.skipif(
        not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == Path.cwd().stat().st_dev,
        reason="there is one file system alone",
    )
    def test_across_file_systems(self, sd15: Path) -> None:
        place = Path("/dev/shm") / f"sdfast-test-{os.getpid()}"
        place.mkdir()
        try:
            sentence = message(exporting(sd15, place / "made", "--link"))
            assert re.search(
                r"cannot be linked .*Invalid cross-device link.*without --link", sentence
            )
            assert list(place.iterdir()) == []
        finally:
            shutil.rmtree(place)

    def test_into_a_pickle(self, checkpoint: Path, made: Path) -> None:
        """Whose bytes lie in no safetensors file: they are copied."""
        unpickled(checkpoint)
        done = exporting(checkpoint, made, "--link", "--allow-pickle")
        assert done.exit_code == 0, done.stderr
        manifest = bundle.load(made).manifest
        assert manifest.networks["unet"].weights == ("unet.safetensors",)
        assert "unet.safetensors" not in manifest.networks["vae_decoder"].weights

    def test_graphs_can_be_taken_again(self, checkpoint: Path, made: Path) -> None:
        linked = export(checkpoint, made.parent.parent / "linked", link=True)
        done = exporting(checkpoint, made, "--link", "--graph-from", linked.path)
        assert done.exit_code == 0, done.stderr
        assert bundle.load(made).manifest.files == linked.manifest.files
