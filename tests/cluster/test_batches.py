"""Batches on two nodes of Ray: every picture once, the same as on one machine, whatever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from nodes import Nodes
from PIL import Image

import sdfast
from sdfast import Pipeline, batches, store
from sdfast.picture_folder import SIDECAR, Folder
from sdfast.prompt_files import Row
from sdfast.provenance import Origin, digest
from sdfast.sweeps import Picture

pytest.importorskip("ray", reason="needs Ray: pip install sdfast[ray]")

from sdfast.cluster import batches as on_ray

pytestmark = pytest.mark.slow  # processes by the dozen, for minutes

OPENING: dict[str, Any] = {
    "backend": "onnxruntime",
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "throughput": False,
    "low_memory": False,
    "lora_dir": None,
    "tile": None,
}
SMALL = {"steps": 2, "width": 64, "height": 64}


def planned(pipe: Pipeline, count: int, steps: int = 2) -> list[list[Picture]]:
    rows = [Row(f"row {k}", {"prompt": f"a small red circle, {k}"}) for k in range(count)]
    pictures, failures = batches.expand(
        rows, {**SMALL, "steps": steps}, (), pipe, Origin.of(pipe, 1)
    )
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


def drawn_while_a_node_dies(
    nodes: Nodes, bundle: Path, count: int, steps: int, folder: Path
) -> None:
    pipe = sdfast.load(bundle, "onnxruntime", "cpu", 1, precision="fp32")
    runs, made = planned(pipe, count, steps), Folder(folder / "cluster", "png", Origin.of(pipe, 1))
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
    drawn_while_a_node_dies(nodes, unknown, 40, 6, tmp_path)


@pytest.mark.slow
def test_each_of_200_prompts_has_one_picture_though_a_node_dies(
    nodes: Nodes, unknown: Path, tmp_path: Path
) -> None:
    drawn_while_a_node_dies(nodes, unknown, 200, 2, tmp_path)


@pytest.mark.slow
def test_a_picture_that_kills_processes_is_told_and_the_others_are_drawn(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned(on_ray._Painter):  # sent by its code, as what no node can import
        def _drawn(self, asked: Any) -> Any:
            if asked["request"]["prompt"].endswith(", 7"):
                os._exit(1)
            return super()._drawn(asked)

    monkeypatch.setattr(on_ray, "_Painter", Poisoned)
    pipe = sdfast.load("demo", "onnxruntime", "cpu", 1, precision="fp32")
    folder = Folder(tmp_path / "out", "png", Origin.of(pipe, 1))
    outcomes = list(on_ray.draw(planned(pipe, 20), pipe, folder, OPENING))
    failures = [one for one in outcomes if isinstance(one, batches.Failure)]
    assert [one.place for one in failures] == ["'a small red circle, 7', seed 0"]
    assert len(files(tmp_path / "out")) == len(listed(tmp_path / "out")) == 19


def test_what_shapes_a_picture_beside_its_prompt_goes_to_every_node(
    nodes: Nodes, tmp_path: Path
) -> None:
    picture, mask, classes = (tmp_path / f"{n}.png" for n in ("picture", "mask", "classes"))
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(picture)
    Image.linear_gradient("L").resize((64, 64)).save(mask)
    painted = Image.new("RGB", (64, 64))
    painted.paste((0, 255, 0), (16, 16, 48, 48))  # a square
    painted.save(classes)
    steering = Path(shutil.copytree(store.find("demo-control"), tmp_path / "steering"))
    own = (
        {"image": str(picture), "mask": str(mask), "strength": 0.5},
        {"control": [{"bundle": str(steering), "image": str(classes)}], "count": 3},
        {"seed": 5, "count": 2, "hires": {"scale": 2}},
    )
    rows = [Row(f"row {k}", {"prompt": "a star", **one}) for k, one in enumerate(own)]
    pipe = sdfast.load("demo", "onnxruntime", "cpu", 1, precision="fp32")
    pictures, failures = batches.expand(rows, SMALL, (), pipe, Origin.of(pipe, 1))
    assert not failures
    runs = batches.runs(pictures)
    folder = Folder(tmp_path / "out", "png", Origin.of(pipe, 1))
    outcomes = list(on_ray.draw(runs, pipe, folder, OPENING))
    assert not [one for one in outcomes if isinstance(one, batches.Failure)]
    assert files(tmp_path / "out") == alone(pipe, runs, tmp_path / "alone")
    assert len(files(tmp_path / "out")) == 6


def test_a_batch_that_was_killed_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("".join(f"a small red circle, {k}\n" for k in range(60)))
    command = [sys.executable, "-m", "sdfast", "batch", str(prompts), "--out", str(out)]
    command += [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    command += ["--backend", "onnxruntime", "--device", "cpu", "--precision", "fp32"]
    command += ["--threads", "1", "--ray-address", nodes.address]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert killed.stdout is not None
    for _ in range(20):
        assert killed.stdout.readline()
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = len(files(out))
    assert 20 <= before < 60

    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert f"60 pictures: {before} were there, {60 - before} drawn" in done.stderr
    pipe = sdfast.load("demo", "onnxruntime", "cpu", 1, precision="fp32")
    assert files(out) == alone(pipe, planned(pipe, 60), tmp_path / "alone")
    assert listed(out) == sorted(files(out))
