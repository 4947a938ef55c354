"""The store: where this machine keeps its bundles, and writes that are whole or not there at all.

Bundles are found by name among those that come with sdfast, then in the store's folder `bundles`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from . import bundle, checksums
from .bundle import MANIFEST, Bundle
from .errors import BundleError, OutputError, nearest


def home() -> Path:
    """The store's folder: SDFAST_HOME, else `sdfast` in the user's cache folder."""
    if chosen := os.environ.get("SDFAST_HOME"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "sdfast"


def packaged() -> Path:
    """The folder of bundles that come with sdfast: beside this file when installed, at the top of
    the source tree otherwise."""
    installed = Path(__file__).parent / "engines"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "engines"


def names() -> tuple[str, ...]:
    """The bundles that can be loaded by name, packaged ones first."""
    found = (
        folder.name
        for place in (packaged(), home() / "bundles")
        if place.is_dir()
        for folder in sorted(place.iterdir())
        if (folder / MANIFEST).is_file()
    )
    return tuple(dict.fromkeys(found))


def find(name_or_path: str | Path) -> Path:
    """The folder of a bundle given by name or path. Raises BundleError when there is none."""
    text = str(name_or_path)
    if text and Path(text).name == text:  # a bare name
        for place in (packaged(), home() / "bundles"):
            if (place / text / MANIFEST).is_file():
                return place / text
    folder = Path(text).expanduser()
    if text and (folder / MANIFEST).is_file():
        return folder
    raise BundleError(
        f"there is no bundle {text!r}{nearest(text, names())}; known: "
        f"{', '.join(names()) or 'none'}; or give the path of a folder with {MANIFEST}, as "
        "`sdfast export` writes"
    )


def load(name_or_path: str | Path) -> Bundle:
    """The bundle given by name or path, all of it checked; large files that were once are not read
    again. Raises BundleError."""
    return bundle.load(find(name_or_path), home() / checksums.MEMORY)


def write_atomically(file: Path, data: bytes) -> None:
    """Writes a file so that it holds all of `data` or stays as it was: a temporary file beside it,
    flushed to the disk, renamed. Raises OutputError when that fails."""
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(file)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{file} cannot be written ({error.strerror}): choose another place with --out"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
