"""The store: the folder of engines and bundles on this machine, and writes that are whole or not
there at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import OutputError


def home() -> Path:
    """The store's folder: SDFAST_HOME, else `sdfast` in the user's cache folder."""
    if chosen := os.environ.get("SDFAST_HOME"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "sdfast"


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
