"""Compiled forms of networks in the store: made once on a machine, and opened from then on.

    STORE/engines/DIGEST/entry.json     the key, and every file's sha256
    STORE/engines/DIGEST/…              what a backend wrote

The key names everything that shapes what is compiled; its digest names the folder. An entry is
written beside its place and renamed, so that it is whole or not there; who makes one holds a lock,
so that two processes do not make it twice. One that is damaged, or another key's, is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from . import checksums
from .errors import StoreWarning

ENTRY = "entry.json"
Build = Callable[[Path], None]
"""build(folder) writes the compiled form's files into an empty folder."""


def entry(store: Path, key: Mapping[str, str], build: Build) -> Path | None:
    """The folder of that key's compiled form in the store, made by `build` where there is none.

    None, with a warning, where the store cannot be written. What `build` raises is passed on.
    """
    folder = _folder(store, key)
    if _whole(folder, key, store / checksums.MEMORY):
        return folder
    return _written(store, key, build, anew=False)


def renewed(store: Path, key: Mapping[str, str], build: Build) -> Path | None:
    """As `entry`, made by `build` even where there is one: for lists of what else is there."""
    return _written(store, key, build, anew=True)


def _folder(store: Path, key: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(sorted(key.items())).encode()).hexdigest()
    return store / "engines" / digest[:32]


def _written(store: Path, key: Mapping[str, str], build: Build, anew: bool) -> Path | None:
    folder = _folder(store, key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock"):
            if not anew and _whole(folder, key, store / checksums.MEMORY):
                return folder  # another process has made it meanwhile
            if folder.exists() and not anew:
                _warn(f"the compiled network {folder} is damaged: it is made anew")
            _make(folder, key, build)
    except OSError as error:
        _warn(
            f"the store {store} cannot be written ({error.strerror}), so networks are compiled at "
            "every start: set SDFAST_HOME to a folder that can"
        )
        return None
    return folder


def _make(folder: Path, key: Mapping[str, str], build: Build) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        build(temporary)
        files = sorted(f for f in temporary.iterdir() if f.is_file())
        for file in files:
            _flush(file)
        digests = zip(files, checksums.digests(files), strict=True)
        record = {"key": dict(key), "files": {file.name: digest for file, digest in digests}}
        (temporary / ENTRY).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _flush(temporary / ENTRY)
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _whole(folder: Path, key: Mapping[str, str], memory: Path) -> bool:
    """Whether the entry is there, that key's, with the files that were written."""
    try:
        record = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
        names = sorted(record["files"])
        if record["key"] != dict(key) or names != sorted(
            f.name for f in folder.iterdir() if f.name != ENTRY
        ):
            return False
        digests = checksums.digests([folder / name for name in names], memory)
        return digests == [record["files"][name] for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds the file's lock, which ends with the process that holds it."""
    with file.open("w") as stream:
        try:
            import fcntl
        except ImportError:  # Windows: the same entry may be made twice; the first one stays
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _warn(sentence: str) -> None:
    warnings.warn(sentence, StoreWarning, stacklevel=5)
