"""A folder of pictures and its sidecar `pictures.jsonl`, which has a line for each: see `Record`.

A picture is there whole or not at all, and gets its line after that. Where a run was killed in
between, the next one adds the line, without times.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from . import images, provenance
from .errors import InvalidRequest, OutputError
from .provenance import Origin, Provenance
from .request import Request
from .store import write_atomically

SIDECAR = "pictures.jsonl"


@dataclass(frozen=True)
class Record:
    """A line of the sidecar. Where a picture was drawn again, the last of its lines holds.

    request: of this picture alone, with every default filled in
    seconds: by stage, of the run that drew it, which drew `together` pictures; None for a picture
        that was there without a line
    """

    file: str
    seed: int
    seconds: Mapping[str, float] | None
    together: int | None
    request: Mapping[str, Any]
    origin: Origin


class Folder:
    """See the module.

    form: of the pictures, one of images.FORMATS
    loras: folders of the LoRA that their prompts name

    Raises InvalidRequest for another form, and OutputError where a folder cannot be.
    """

    def __init__(self, path: Path, form: str, origin: Origin, loras: Sequence[Path] = ()) -> None:
        if form not in images.FORMATS:
            raise InvalidRequest(
                f"format {form!r} is unknown; use one of {', '.join(images.FORMATS)}"
            )
        self.path, self._form, self._origin, self._loras = path, form, origin, loras
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._listed = _listed(path / SIDECAR)
        except OSError as error:
            raise OutputError(
                f"folder {path} cannot be used ({error.strerror}): choose another --out"
            ) from error

    def file(self, name: str) -> Path:
        """Where the picture of that name is, or would be."""
        return self.path / f"{name}.{self._form}"

    def has(self, name: str, request: Request) -> bool:
        """Whether the picture is there and whole."""
        file = self.file(name)
        if not images.whole(file):
            return False
        if file.name not in self._listed:
            self._note(
                Record(file.name, request.seed or 0, None, None, request.to_dict(), self._origin)
            )
        return True

    def add(
        self,
        name: str,
        image: Image.Image,
        request: Request,
        seconds: Mapping[str, float],
        together: int,
        place: int,
        origin: Origin | None = None,
    ) -> Record:
        """Writes the picture, then its line. place: among those that were drawn together, from 0;
        origin: where another pipeline than the folder's drew it."""
        file = self.file(name)
        origin = origin or self._origin
        drawn = Provenance(origin, provenance.inputs(request, self._loras), together, place)
        data = images.encode(image, self._form, request, origin.bundle, origin.version, drawn)
        write_atomically(file, data)
        record = Record(
            file.name, request.seed or 0, dict(seconds), together, request.to_dict(), origin
        )
        self._note(record)
        return record

    def _note(self, record: Record) -> None:
        _append(self.path / SIDECAR, json.dumps(asdict(record), ensure_ascii=False))
        self._listed.add(record.file)


def _listed(sidecar: Path) -> set[str]:
    """The files that have a line. One that was cut off is none."""
    listed = set()
    if sidecar.exists():
        for line in sidecar.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                listed.add(str(json.loads(line)["file"]))
            except (ValueError, TypeError, KeyError):
                continue
    return listed


def _append(file: Path, line: str) -> None:
    """One write of one line, so that lines of several processes do not mix; where the last line was
    cut off it begins a new one."""
    data = (line + "\n").encode()
    try:
        with file.open("a+b", buffering=0) as stream:
            if (size := stream.seek(0, os.SEEK_END)) and os.pread(
                stream.fileno(), 1, size - 1
            ) != b"\n":
                data = b"\n" + data
            if stream.write(data) != len(data):
                raise OSError(0, "the disk is full")
            os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(
            f"{file} cannot be written ({error.strerror}): choose another place with --out"
        ) from error
