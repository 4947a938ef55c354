"""A request names a LoRA; nothing that it says leads out of the folders that are given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdfast import loras
from sdfast.errors import LoraError
from sdfast.loras import Lora


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "loras"
    made.mkdir()
    for name in ("ink.safetensors", "Watercolour v1.5.safetensors", "notes.txt", "old.pt"):
        (made / name).write_bytes(name.encode())
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    return made


def test_the_first_folder_that_has_it_counts(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("ink", "fog"):
        (other / f"{name}.safetensors").touch()
    places = [folder, other, tmp_path / "none"]
    assert loras.find("ink", places) == folder / "ink.safetensors"
    assert loras.find("fog", places) == other / "fog.safetensors"
    assert loras.find("Watercolour v1.5", places).parent == folder
    assert loras.names(places) == ("Watercolour v1.5", "ink", "fog")


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "..", ".", "", "/etc/passwd", "loras/ink", "..\\secret", "c:ink"),
        *("ink\0", "ink\n", "secret", "ink.safetensors", "notes", "old", "~", "*", "i" * 5000),
    ],
)
def test_a_name_is_that_of_a_file_there_and_nothing_else(folder: Path, name: str) -> None:
    with pytest.raises(LoraError, match=r"^there is no LoRA|is no name of a LoRA") as raised:
        loras.find(name, [folder])
    assert len(str(raised.value)) < 300


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few users make links")
def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "inner.safetensors").symlink_to(folder / "ink.safetensors")
    with pytest.raises(LoraError, match="there is no LoRA 'link'"):
        loras.find("link", [folder])
    assert loras.find("inner", [folder]).read_bytes() == b"ink.safetensors"
    linked = tmp_path / "linked"  # the folder itself may be anywhere: its owner gives it
    linked.symlink_to(folder)
    assert loras.find("ink", [linked]) == linked / "ink.safetensors"


def test_the_nearest_name_is_told(folder: Path) -> None:
    with pytest.raises(LoraError, match=r"no LoRA 'inc'; did you mean 'ink'\?; looked for inc\.s"):
        loras.find("inc", [folder])
    with pytest.raises(LoraError, match="in no folder"):
        loras.find("ink", [])


def test_a_key_is_of_contents_and_weights(folder: Path) -> None:
    ink, again = folder / "ink.safetensors", folder / "again.safetensors"
    again.write_bytes(ink.read_bytes())
    assert loras.key([Lora(ink, 0.5)]) == loras.key([Lora(again, 0.5)])
    assert loras.key([Lora(ink, 0.5)]) != loras.key([Lora(ink, 0.6)])
    before = loras.key([Lora(ink)])
    ink.write_bytes(b"other")
    assert loras.key([Lora(ink)]) != before
    with pytest.raises(LoraError, match="-10 to 10"):
        loras.key([Lora(ink, 11)])
    with pytest.raises(LoraError, match="does not exist"):
        loras.key([Lora(folder / "none.safetensors")])


def test_the_weight_follows_the_last_colon() -> None:
    assert loras.parse("a.safetensors") == Lora(Path("a.safetensors"))
    assert loras.parse("a.safetensors:0.8") == Lora(Path("a.safetensors"), 0.8)
    assert loras.parse("c:/x:y/a.safetensors:-2") == Lora(Path("c:/x:y/a.safetensors"), -2.0)
    assert loras.parse("c:/a.safetensors") == Lora(Path("c:/a.safetensors"))
    with pytest.raises(LoraError, match="the weight 'strong' of the LoRA"):
        loras.parse("a.safetensors:strong")
    for weight in ("nan", "inf", "-10.5", "11"):
        with pytest.raises(LoraError, match="-10 to 10"):
            loras.parse(f"a.safetensors:{weight}")
