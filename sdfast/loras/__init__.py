"""LoRA files at run time: what a request may name, and what tells sets of them apart.

How they change a bundle's networks is applied.py's; files.py reads them, for the exporter too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import checksums
from ..errors import LoraError, nearest
from .files import check_weight

FOLDER = "loras"
"""Of a bundle: where those lie that are for it alone."""
_LONGEST_NAME = 255  # of a file


@dataclass(frozen=True)
class Lora:
    """A file, and the weight that what it adds is multiplied by, -10 … 10."""

    file: Path
    weight: float = 1.0


def parse(text: str) -> Lora:
    """A file and its weight from "file.safetensors:0.8"; 1 without a weight.

    A path may hold colons. Raises LoraError for a weight that is no number in -10 … 10.
    """
    head, colon, tail = text.rpartition(":")
    try:
        weight = float(tail) if colon else 1.0
    except ValueError:
        if head.endswith(".safetensors"):
            raise LoraError(
                f"the weight {tail!r} of the LoRA {head} is not a number: give one as in {head}:0.8"
            ) from None
        return Lora(Path(text))
    check_weight(weight)
    return Lora(Path(head if colon else text), weight)


Key = tuple[tuple[str, float], ...]
"""Of loras: each file's sha256 and weight, in their order. With equal keys networks are equal."""


def find(name: str, folders: Iterable[Path]) -> Path:
    """The file NAME.safetensors of the first folder that has one.

    The name is compared with those of the files there, and never made a path of; a file that leads
    out of its folder is none of it. Raises LoraError, which tells the nearest names.
    """
    folders = list(folders)
    if not name or len(name) > _LONGEST_NAME or not name.isprintable() or set(name) & set("/\\:"):
        raise LoraError(
            f"{name[:40]!r} is no name of a LoRA: give that of a file, without folder and ending, "
            "as in <lora:ink:0.8>"
        )
    known: dict[str, Path] = {}
    for folder in folders:
        for file in _of(folder):
            known.setdefault(file.stem, file)
    if name not in known:
        places = " and ".join(str(folder) for folder in folders) or "no folder"
        raise LoraError(
            f"there is no LoRA {name!r}{nearest(name, known)}; looked for {name}.safetensors in "
            f"{places}"
        )
    return known[name]


def _of(folder: Path) -> list[Path]:
    """The LoRA files of a folder."""
    if not folder.is_dir():
        return []
    inside = folder.resolve()
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() == ".safetensors"
        and file.is_file()
        and file.resolve().is_relative_to(inside)
    ]


def names(folders: Iterable[Path]) -> tuple[str, ...]:
    """Those that `find` finds."""
    return tuple(dict.fromkeys(file.stem for folder in folders for file in _of(folder)))


def key(loras: Iterable[Lora], memory: Path | None = None) -> Key:
    """See Key. memory: where digests of large files are kept (`checksums`). Raises LoraError."""
    loras = list(loras)
    for lora in loras:
        check_weight(lora.weight)
        if not lora.file.is_file():
            raise LoraError(f"the LoRA {lora.file} does not exist: give a .safetensors file")
    digests = checksums.digests((lora.file for lora in loras), memory)
    return tuple((digest, lora.weight) for digest, lora in zip(digests, loras, strict=True))
