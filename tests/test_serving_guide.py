"""docs/serving.md: its clients draw as they stand, and its tables are those of the code."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image
from served import Serving

from sdfast.cli.serve import serve
from sdfast.service import Limits
from sdfast.service.http.settings import Settings
from sdfast.service.metrics import Metrics

GUIDE = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
CURL = re.findall(r"^    (curl .*)$", GUIDE, re.MULTILINE)
ADDRESS = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    serving = Serving()
    yield serving.over(Settings()).removeprefix("http://")
    serving.close()


@pytest.mark.parametrize(
    ("block", "drawn"),
    [
        (0, {"circle.png"}),
        (1, {"star.png"}),
        (2, {"green.png"}),
        (3, {"a red star.png", "a green star.png", "a blue star.png"}),
    ],
    ids=["openai", "webuiapi", "hugging_face", "embedded"],
)
def test_the_clients_of_the_guide_draw(
    block: int,
    drawn: set[str],
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    port = address.rpartition(":")[2]
    code = PYTHON[block].replace(ADDRESS, address).replace("port=8000", f"port={port}")
    exec(compile(code, "serving.md", "exec"), {"__name__": "__main__"})
    assert {path.name for path in tmp_path.iterdir()} == drawn
    assert {Image.open(path).size for path in tmp_path.iterdir()} == {(64, 64)}
    said = capsys.readouterr().out.splitlines()
    if block == 0:
        kinds = ["partial_image", "partial_image", "completed"]
        assert said == [f"image_generation.{kind}" for kind in kinds]
    if block == 3:
        assert said[-2].startswith("done ")
        assert said[-1] == "deadline_infeasible None"


def test_there_is_a_test_for_each_block() -> None:
    assert len(PYTHON) == 4
    assert len(CURL) == 5


@pytest.mark.parametrize("command", CURL)
def test_the_calls_of_the_guide_are_answered(command: str, address: str) -> None:
    words = shlex.split(command.replace(ADDRESS, address))
    done = subprocess.run([*words, "--silent", "--show-error"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "stream" in command:
        events = re.findall(r"^event: (\w+)", done.stdout, re.MULTILINE)
        assert events[-2:] == ["image", "done"]
        assert events.count("preview") >= 2
        assert events.count("progress") >= 3


def test_its_options_are_those_of_the_command_and_its_limits_have_these_values() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", GUIDE))
    known = {option for one in serve.params for option in one.opts}
    elsewhere = {"--stop-timeout"}  # Docker's
    assert named - elsewhere <= known
    assert {f"--{one.name.replace('_', '-')}" for one in fields(Limits)} <= named
    usual = Limits()
    for said in (
        f"`--queue` | {usual.queue} that",
        f"`--queue-seconds` | {usual.queue_seconds:g} s",
        f"`--deadline` | {usual.deadline:g} s",
        f"`--running` | {usual.running} |",
        f"`--images`, `--steps` | {usual.images}, {usual.steps} |",
        f"`--prompt` | {usual.prompt} characters",
        f"`--body` | {usual.body >> 20} MiB",
        f"`--input-pixels` | {usual.input_pixels >> 20} Mi,",
        f"`--canary` | {usual.stall:g} s, {usual.drain:g} s, {usual.canary:g} s",
        f"`--write-seconds` | {Settings().body_seconds:g} s",
    ):
        assert said in GUIDE, said


def test_its_metrics_are_those_of_a_service() -> None:
    known = {
        family.name + "_total" * (family.type == "counter")
        for family in Metrics().registry.collect()
    }
    assert set(re.findall(r"`(sdfast_\w+)", GUIDE)) == known
