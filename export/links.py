"""Weights left where the checkpoint has them: the bundle's graphs point into its own files.

ONNX takes no path that leaves the graph's folder, so the bundle gets a second name of each file (a
hard link): no byte is copied. Where a tensor lies in its file is asked of the system, which knows
what is mapped where; that holds for parts of tensors and for tensors under new names as well.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import OutputError
from .components import Checkpoint
from .weights import Place


@dataclass(frozen=True)
class _Mapped:
    start: int
    end: int
    offset: int
    file: Path


def link(checkpoint: Checkpoint, folder: Path) -> dict[str, dict[str, Place]]:
    """Links the checkpoint's files into `folder`; returns the places of the tensors that lie in
    them, by component and name. Those that were changed since they were read lie in none.

    Raises OutputError where the system tells no places or links no files.
    """
    mapped = _mapped()
    names: dict[Path, str] = {}
    found: dict[str, dict[str, Place]] = {}
    for part, component in checkpoint.components.items():
        for name, tensor in component.weights.items():
            if (place := _place(tensor, mapped)) is not None:
                file, offset = place
                if file not in names:
                    names[file] = _link(file, folder, len(names))
                length = tensor.numel() * tensor.element_size()
                found.setdefault(part, {})[name] = Place(names[file], offset, length)
    return found


def _mapped() -> list[_Mapped]:
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise OutputError(
            "--link asks Linux where weights are mapped; on this system export without it"
        ) from error
    regions = []
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            start, _, end = fields[0].partition("-")
            regions.append(
                _Mapped(int(start, 16), int(end, 16), int(fields[2], 16), Path(fields[5]))
            )
    return sorted(regions, key=lambda region: region.start)


def _place(tensor: torch.Tensor, mapped: list[_Mapped]) -> tuple[Path, int] | None:
    """The file and the offset of a contiguous tensor's bytes, if they lie in a weights' file."""
    if not tensor.is_contiguous() or tensor.numel() == 0:
        return None
    first = tensor.data_ptr()
    last = first + tensor.numel() * tensor.element_size()
    k = bisect_right(mapped, first, key=lambda region: region.start) - 1
    region = mapped[k] if k >= 0 else None
    if region is None or last > region.end or region.file.suffix != ".safetensors":
        return None
    return region.file, region.offset + first - region.start


def _link(file: Path, folder: Path, number: int) -> str:
    name = f"checkpoint-{number}.safetensors"
    try:
        os.link(file, folder / name)
    except OSError as error:
        raise OutputError(
            f"{file} cannot be linked into {folder.parent} ({error.strerror}): a hard link needs "
            "both on one file system; export without --link"
        ) from error
    return name
