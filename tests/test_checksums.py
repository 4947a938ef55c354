from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from sdfast import checksums


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as a large one, and as one that has not changed for long."""
    monkeypatch.setattr(checksums, "LARGE", 4)
    monkeypatch.setattr(checksums, "_SETTLED_SECONDS", -1.0)
    file = tmp_path / "large"
    file.write_bytes(b"12345")
    return file


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_large_files_are_read_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = large.parent / "memory.json"
    assert checksums.digests([large], memory) == [digest(b"12345")]
    monkeypatch.setattr(checksums, "sha256", None)
    assert checksums.digests([large], memory) == [digest(b"12345")]


def test_a_change_is_seen_even_where_size_and_time_are_the_same(large: Path) -> None:
    memory = large.parent / "memory.json"
    checksums.digests([large], memory)
    before = large.stat()
    large.write_bytes(b"12346")
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checksums.digests([large], memory) == [digest(b"12346")]


def test_small_and_new_files_are_always_read(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = large.parent / "memory.json"
    monkeypatch.setattr(checksums, "_SETTLED_SECONDS", 60.0)
    small = large.parent / "small"
    small.write_bytes(b"1")
    assert checksums.digests([large, small], memory) == [digest(b"12345"), digest(b"1")]
    assert not memory.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'])
def test_a_memory_that_cannot_be_read_is_none(large: Path, content: str) -> None:
    memory = large.parent / "memory.json"
    memory.write_text(content)
    assert checksums.digests([large], memory) == [digest(b"12345")]
    assert digest(b"12345") in json.dumps(json.loads(memory.read_text()))


def test_a_memory_that_cannot_be_written_is_no_fault(large: Path) -> None:
    assert checksums.digests([large], large / "no folder" / "memory.json") == [digest(b"12345")]
