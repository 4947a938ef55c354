"""Weights that stay in the checkpoint's files."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdfast.errors import OutputError
from sdfast.export import links, random_checkpoint, sources
from sdfast.export.components import Checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the mappings")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return sources.read(random_checkpoint("tiny-sd15", tmp_path / "checkpoint"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    return tmp_path / "bundle"


def test_every_tensors_bytes_are_where_they_are_said_to_be(
    checkpoint: Checkpoint, folder: Path
) -> None:
    found = links.link(checkpoint, folder)
    assert found.keys() == checkpoint.components.keys()
    for part, component in checkpoint.components.items():
        assert found[part].keys() == component.weights.keys()
        for name, tensor in component.weights.items():
            place = found[part][name]
            content = (folder / place.file).read_bytes()[place.offset :][: place.length]
            assert content == tensor.numpy().tobytes()


def test_files_are_linked_and_not_copied(checkpoint: Checkpoint, folder: Path) -> None:
    links.link(checkpoint, folder)
    theirs = {f.stat().st_ino for f in Path(checkpoint.source).rglob("*.safetensors")}
    assert {f.stat().st_ino for f in folder.iterdir()} == theirs
    assert {f.name for f in folder.iterdir()} == {f"checkpoint-{k}.safetensors" for k in range(3)}


def test_what_was_changed_lies_in_no_file(checkpoint: Checkpoint, folder: Path) -> None:
    unet = checkpoint.components["unet"]
    changed = {
        "conv_in.weight": unet.weights["conv_in.weight"] + 1,  # as a LoRA does
        "conv_out.weight": unet.weights["conv_out.weight"].transpose(0, 1),  # of other strides
        "conv_out.bias": torch.zeros(4),
    }
    parts = {"unet": replace(unet, weights={**unet.weights, **changed})}
    found = links.link(replace(checkpoint, components=parts), folder)["unet"]
    assert unet.weights.keys() - found.keys() == changed.keys()


def test_a_part_of_a_tensor_lies_in_its_file_too(checkpoint: Checkpoint, folder: Path) -> None:
    unet = checkpoint.components["unet"]
    whole = unet.weights["conv_in.weight"]
    parts = {"unet": replace(unet, weights={"all": whole, "half": whole[16:]})}
    found = links.link(replace(checkpoint, components=parts), folder)["unet"]
    assert found["half"].offset == found["all"].offset + whole[:16].nbytes
    assert found["half"].length == whole[16:].nbytes


def test_pickles_are_not_linked(checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "pickled.bin"
    torch.save(dict(checkpoint.components["unet"].weights), file)
    mapped = torch.load(file, weights_only=True, mmap=True)
    unet = replace(checkpoint.components["unet"], weights=mapped)
    assert links.link(replace(checkpoint, components={"unet": unet}), folder) == {}
    assert list(folder.iterdir()) == []


def test_what_lies_in_a_file_that_is_gone_is_not_linked(
    checkpoint: Checkpoint, folder: Path
) -> None:
    (Path(checkpoint.source) / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert links.link(checkpoint, folder).keys() == {"text_encoder", "unet"}


def test_a_folder_that_takes_no_links_is_named(checkpoint: Checkpoint) -> None:
    message = r"cannot be linked into /proc/self \(.*\): a hard link needs both on one file system"
    with pytest.raises(OutputError, match=message):
        links.link(checkpoint, Path("/proc/self/fd"))
