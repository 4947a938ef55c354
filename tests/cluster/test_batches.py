"""Batches on two nodes of Ray: every picture once, and the same as on one machine, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from nodes import Nodes

import sdfast
from sdfast import Pipeline, batches
from sdfast.cluster import batches as on_ray
from sdfast.picture_folder import SIDECAR, Folder
from sdfast.prompt_files import Row
from sdfast.provenance import Origin, digest
from sdfast.sweeps import Picture

pytest.importorskip("ray", reason="needs Ray: pip install sdfast[ray]")

OPENING = {
    **{"backend": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 1},
    **{"throughput": False, "low_memory": False, "lora_dir": None, "tile": None},
}
SMALL = {"steps": 2, "width": 64, "height": 64}


def planned(pipe: Pipeline, count: int) -> list[list[Picture]]:
    rows = [Row(f"row {k}", {"prompt": f"a small red circle, {k}"}) for k in range(count)]
    pictures, failures = batches.expand(rows, SMALL, (), pipe, Origin.of(pipe, 1))
    assert not failures
    return batches.runs(pictures)


def alone(pipe: Pipeline, runs: Sequence[Sequence[Picture]], folder: Path) -> dict[str, bytes]:
    """What this process draws by itself."""
    list(batches.draw(runs, pipe, Folder(folder, "png", Origin.of(pipe, 1)).add))
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.png")}


def listed(folder: Path) -> list[str]:
    return sorted(json.loads(line)["file"] for line in (folder / SIDECAR).open())


def drawn_while_a_node_dies(nodes: Nodes, bundle: Path, count: int, folder: Path) -> None:
    pipe = sdfast.load(bundle, "onnxruntime", "cpu", 1, precision="fp32")
    runs, made = planned(pipe, count), Folder(folder / "cluster", "png", Origin.of(pipe, 1))
    fetched = nodes.homes["second"] / "received" / digest(bundle)[:32]
    came = came_since = 0
    for outcome in on_ray.draw(runs, pipe, made, OPENING):
        assert not isinstance(outcome, batches.Failure)
        came += 1
        came_since += fetched.exists()
        if came_since == 10:  # the second node draws
            nodes.kill("second")
    assert came == count
    assert came_since > 10
    assert files(folder / "cluster") == alone(pipe, runs, folder / "alone")
    assert listed(folder / "cluster") == sorted(files(folder / "alone"))


def test_every_prompt_has_one_picture_though_a_node_dies(
    nodes: Nodes, unknown: Path, tmp_path: Path
) -> None:
    drawn_while_a_node_dies(nodes, unknown, 60, tmp_path)


@pytest.mark.slow
def test_each_of_200_prompts_has_one_picture_though_a_node_dies(
    nodes: Nodes, unknown: Path, tmp_path: Path
) -> None:
    drawn_while_a_node_dies(nodes, unknown, 200, tmp_path)
