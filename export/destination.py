"""Where a bundle appears: whole or not at all.

It is made in a hidden folder beside its destination and renamed at the end. What a killed export
leaves there, the next one to the same destination removes.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..bundle import MANIFEST
from ..errors import OutputError

_TEMPORARY = ".sdfast-export-"
_OLD = "-old"  # of the bundle that makes room


def check(destination: Path, source: str | Path, overwrite: bool) -> None:
    """Raises OutputError unless a bundle of the checkpoint `source` may appear at `destination`;
    removes what a killed export left there before."""
    place, checkpoint = destination.resolve(), Path(source).resolve()
    _clean(place)
    if checkpoint.exists() and place.is_relative_to(checkpoint):
        raise OutputError(f"{destination} is in the checkpoint {source}: choose a place outside")
    if not place.exists() and not destination.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"{destination} exists: choose another place, or pass --overwrite")
    if not (place / MANIFEST).is_file() or destination.is_symlink():
        raise OutputError(
            f"{destination} is no bundle: it is not overwritten; choose another place"
        )
    if checkpoint.is_relative_to(place):
        raise OutputError(
            f"{destination} has the checkpoint {source} in it, which --overwrite would remove: "
            "choose another place"
        )


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder beside `destination` that takes its place when the block ends well, and goes away
    when it does not. Raises OutputError where it cannot be written."""
    place = destination.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{place.name}-", dir=place.parent))
        try:
            yield folder
            folder.chmod(0o755)
            _sync(folder)
            _move(folder, place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"{destination} cannot be written ({error.strerror or error}): choose another place"
        ) from error


def _clean(place: Path) -> None:
    """Removes what a killed export left, and puts back the bundle that it was replacing."""
    form = re.compile(re.escape(f"{_TEMPORARY}{place.name}-") + f"[a-z0-9_]{{8}}({_OLD})?")
    for left in place.parent.iterdir() if place.parent.is_dir() else ():
        if (found := form.fullmatch(left.name)) is None:
            continue
        if found[1] and not place.exists():
            left.rename(place)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _move(folder: Path, place: Path) -> None:
    if not place.exists():
        folder.rename(place)
        return
    old = folder.with_name(folder.name + _OLD)
    place.rename(old)
    try:
        folder.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for file in (*folder.rglob("*"), folder):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
