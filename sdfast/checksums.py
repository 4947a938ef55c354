"""Digests of files, and of large ones a memory: a bundle of gigabytes is read whole once, not at
every start.

A file is taken for the one that was read if its size, inode and times of change are the same. No
program sets the time of the last change of an inode (ctime) to what it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

MEMORY = "checksums.json"  # of a store
LARGE = 16 << 20  # bytes; smaller files are read in milliseconds
_SETTLED_SECONDS = 2.0  # a younger file might change again within its clock's resolution


def sha256(file: Path) -> str:
    """The file's digest in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(files: Iterable[Path], memory: Path | None = None) -> list[str]:
    """The sha256 of each file. memory: a JSON file of large ones' digests, to read and go on with;
    it is only ever a shortcut, and one that cannot be read or written is none."""
    files = list(files)
    known = _read(memory)
    marks = {file: _mark(file) for file in files}
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock
        found = list(pool.map(lambda f: known.get(str(f.resolve()), {}).get(marks[f]), files))
        missing = [file for file, digest in zip(files, found, strict=True) if digest is None]
        computed = dict(zip(missing, pool.map(sha256, missing), strict=True))
    learned = {
        str(file.resolve()): {mark: computed[file]}
        for file in missing
        if (mark := marks[file]) and mark == _mark(file)
    }
    if memory is not None and learned:
        _write(memory, {**known, **learned})
    return [digest or computed[f] for f, digest in zip(files, found, strict=True)]


def _mark(file: Path) -> str:
    """What changes when a large file does; empty for others, and for one that changed just now."""
    stat = file.stat()
    if stat.st_size < LARGE or time.time() - stat.st_ctime < _SETTLED_SECONDS:
        return ""
    return f"{stat.st_size} {stat.st_dev} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _read(memory: Path | None) -> Mapping[str, Mapping[str, str]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8")) if memory else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict) or not all(isinstance(v, dict) for v in known.values()):
        return {}
    return known


def _write(memory: Path, known: Mapping[str, Mapping[str, str]]) -> None:
    kept = {name: marks for name, marks in known.items() if Path(name).exists()}
    temporary = memory.with_suffix(f".{time.time_ns()}")
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        temporary.replace(memory)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
