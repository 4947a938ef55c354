"""Where commands write."""

from __future__ import annotations

from pathlib import Path

from ..errors import OutputError


def check_out(out: Path, several: bool) -> None:
    """Before anything is drawn: whether the pictures will have a place."""
    folder = out.parent if out.suffix else out
    if out.suffix and several:
        raise OutputError(f"--out {out} is one file, and there are several pictures: give a folder")
    if out.suffix and out.is_dir():
        raise OutputError(
            f"--out {out} is a folder: give it without a suffix, or name a file in it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder {folder} cannot be made ({error.strerror}): choose another --out"
        ) from error
