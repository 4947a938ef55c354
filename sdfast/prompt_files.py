"""Files of requests: text with one prompt a line, CSV, JSON lines or Parquet.

A row of the last three gives parameters of a Request by their names; what it leaves empty (null in
JSON and Parquet) stands for the default. A CSV cell is written as on the command line.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from . import request_text
from .errors import BackendUnavailable, InvalidRequest, nearest
from .request import Request


@dataclass(frozen=True)
class Row:
    """What one row gives. place: where it stands, for messages: "prompts.csv row 3"."""

    place: str
    values: Mapping[str, Any]


def is_file(name: str) -> bool:
    """Whether a word is the name of such a file, by its suffix."""
    return Path(name).suffix.lower() in _READERS


def read(file: Path) -> list[Row]:
    """The rows of a file, by its suffix; any other suffix is text.

    Raises InvalidRequest for a file that cannot be read, is empty, or has a parameter that no
    Request has; BackendUnavailable for Parquet without pyarrow.
    """
    reader = _READERS.get(file.suffix.lower(), _text)
    try:
        rows = list(reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{file} cannot be read ({reason})") from error
    if not rows:
        raise InvalidRequest(f"{file} holds no prompt: write one on each line")
    return rows


def _text(file: Path) -> Iterator[Row]:
    for number, line in enumerate(_content(file).splitlines(), 1):
        if line.strip():
            yield Row(f"{file.name} line {number}", {"prompt": line.strip()})


def _csv(file: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_content(file), newline=""), strict=True)
    header = [name.strip() for name in next(reader, [])]
    _check(header, f"{file.name} row 1")
    for number, cells in enumerate(reader, 2):  # as a spreadsheet counts them
        place = f"{file.name} row {number}"
        if len(cells) > len(header):
            raise InvalidRequest(
                f"{place} has {len(cells)} cells under {len(header)} names: put those that have "
                'commas in quotes, as "red, green"'
            )
        given = {n: c for n, c in zip(header, cells, strict=False) if c.strip()}
        if given:
            yield Row(place, {name: _cell(name, cell) for name, cell in given.items()})


def _cell(name: str, cell: str) -> Any:
    """What reads as no value of that parameter stays text, which the request then refuses."""
    try:
        return request_text.read(name, cell)
    except InvalidRequest:
        return cell


def _json(file: Path) -> Iterator[Row]:
    lines = _content(file).split("\n")  # JSON's strings may hold what other programs end lines with
    for number, line in enumerate(lines, 1):
        place = f"{file.name} line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{place} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise InvalidRequest(
                f'{place} must be an object, as {{"prompt": "a red star", "steps": 10}}'
            )
        yield _row(place, values)


def _parquet(file: Path) -> Iterator[Row]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
        arrow: Any = importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f'{file} needs pyarrow, which is missing: pip install "sdfast[parquet]", or write the '
            "rows as CSV or JSON lines"
        ) from error
    try:
        table = parquet.read_table(io.BytesIO(file.read_bytes())).to_pylist()
    except arrow.ArrowException as error:
        raise InvalidRequest(f"{file} is no Parquet file ({error})") from error
    for number, values in enumerate(table, 1):
        yield _row(f"{file.name} row {number}", values)


def _row(place: str, values: Mapping[str, Any]) -> Row:
    _check(values, place)
    return Row(place, _without_null(values))


def _without_null(values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of structures hold every name in every row."""
    return {
        name: _without_null(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }


def _check(names: Iterable[str], place: str) -> None:
    names, known = list(names), [field.name for field in fields(Request)]
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"{place} has {name!r}, which is no parameter of a request{nearest(name, known)}; "
                f"known: {', '.join(known)}"
            )
        if names.count(name) > 1:
            raise InvalidRequest(f"{place} has {name} twice: once is enough")


def _content(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig")  # some programs begin a file with a mark


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _text,
    ".csv": _csv,
    ".jsonl": _json,
    ".parquet": _parquet,
}
SUFFIXES = tuple(_READERS)
