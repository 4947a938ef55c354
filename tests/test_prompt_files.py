"""Files of requests: what rows give, and what is refused with its place."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from sdfast import prompt_files, request_text
from sdfast.errors import BackendUnavailable, InvalidRequest
from sdfast.request import Request

ROWS: list[dict[str, Any]] = [
    {"prompt": "a red star, large", "steps": 5, "guidance": 4.0},
    {
        "prompt": "„Straße“ 星",
        "sampler": "ddim",
        "sampler_parameters": {"eta": 0.5},
        "guidance_interval": [0.3, 5.0],
        "cache": 3,
        "discard_penultimate": True,
    },
]


def test_rows_of_csv_give_the_parameters_of_requests(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    names = list(dict.fromkeys(name for row in ROWS for name in row))
    cells = [
        ['"a red star, large"', "5", "4", "", "", "", "", ""],
        ["„Straße“ 星", "", "", "ddim", "eta=0.5", '"0.3,5"', "3", "true"],
    ]
    text = "\r\n".join(",".join(row) for row in [names, *cells])
    file.write_text(text, encoding="utf-8-sig")  # with the mark that spreadsheets put before it
    found = prompt_files.read(file)
    assert [Request.from_dict(row.values) for row in found] == list(map(Request.from_dict, ROWS))


def test_rows_of_json_lines_give_them_and_null_stands_for_the_default(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps(row | {"negative_prompt": None}, ensure_ascii=False) for row in ROWS]
    file.write_text("\n\n".join(lines), encoding="utf-8")
    found = prompt_files.read(file)
    assert [Request.from_dict(row.values) for row in found] == list(map(Request.from_dict, ROWS))
    assert [row.place for row in found] == ["prompts.jsonl line 1", "prompts.jsonl line 3"]


def test_parquet_gives_them_and_its_nulls_stand_for_defaults(tmp_path: Path) -> None:
    file = tmp_path / "prompts.parquet"
    names = {name: None for row in ROWS for name in row}
    own = {"sampler_parameters": {"eta": None, "order": 2}}
    rows = [names | row for row in [*ROWS, {"prompt": "a ring", "sampler": "lms", **own}]]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    found = [Request.from_dict(row.values) for row in prompt_files.read(file)]
    assert found[:2] == [Request.from_dict(row) for row in ROWS]
    assert found[2] == Request("a ring", sampler="lms", sampler_parameters={"order": 2})


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BackendUnavailable, match=r"sdfast\[parquet\]"):
        prompt_files.read(tmp_path / "prompts.parquet")


def test_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text("a red star, large\n\n  # 1: a ring  \r\n")
    found = prompt_files.read(file)
    assert [(row.place, row.values["prompt"]) for row in found] == [
        ("prompts line 1", "a red star, large"),
        ("prompts line 3", "# 1: a ring"),
    ]


WRONG = {
    "name of a column": (".csv", "prompt,step\na,3\n", "row 1 has 'step'.*did you mean 'steps'"),
    "column given twice": (".csv", "prompt,prompt\na,b\n", "row 1 has prompt twice"),
    "comma without quotes": (".csv", "prompt\na ring\na star, red\n", "row 3 has 2 cells under 1"),
    "open quote": (".csv", 'prompt\n"a ring', "cannot be read"),
    "name of a key": (".jsonl", '{"prompt": "a"}\n{"promt": "b"}', "line 2 has 'promt'.*'prompt'"),
    "line cut off": (".jsonl", '{"prompt": "a"}\n{"prompt":', "line 2 is not JSON"),
    "list in a line": (".jsonl", "[1]", "line 1 must be an object"),
    "bytes": (".parquet", "prompt", "is no Parquet file"),
    "nothing": (".txt", "\n \n", "holds no prompt"),
    "header alone": (".csv", "prompt,steps\n", "holds no prompt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_understood_is_refused_with_the_place(
    name: str, tmp_path: Path
) -> None:
    suffix, content, expected = WRONG[name]
    file = tmp_path / f"prompts{suffix}"
    file.write_text(content)
    with pytest.raises(InvalidRequest, match=expected):
        prompt_files.read(file)


def test_every_parameter_of_a_request_can_be_written_as_text() -> None:
    assert set(request_text.FORMS) == {field.name for field in fields(Request)}


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("steps", "5, 10", [5, 10]),
        ("sampler", "DPM++ 2M,euler", ["DPM++ 2M", "euler"]),
        ("cache", "1,2,auto", [1, 2, "auto"]),
        ("cache", "0,1,3", [(0, 1, 3)]),
        ("guidance_interval", "0.3,5", [(0.3, 5.0)]),
        ("negative_prompt", "blue, green", ["blue, green"]),
    ],
)
def test_lists_are_split_where_a_comma_is_no_part_of_a_value(
    name: str, text: str, values: list[Any]
) -> None:
    assert request_text.read_several(name, text) == values


def test_what_is_given_takes_the_place_of_all_that_hangs_on_the_former() -> None:
    former = {"prompt": "a", "schedule": "custom", "sigmas": (5.0, 1.0, 0.0), "seed": 3}
    assert request_text.overlaid(former, {"steps": 4}) == {"prompt": "a", "seed": 3, "steps": 4}
    former = {"sampler": "ddim", "sampler_parameters": {"eta": 0.5}, "steps": 9}
    assert request_text.overlaid(former, {"sampler": "lms", "sigmas": (1.0, 0.0)}) == {
        "sampler": "lms",
        "sigmas": (1.0, 0.0),
    }
