"""sdfast export and recipes: output and exit codes. What loads torch runs in this process, which
has loaded it already."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from sdfast import bundle, cli
from sdfast.errors import VerificationError
from sdfast.export import export, random_checkpoint, recipes


def sdfast(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdfast", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def exported(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["export", *map(str, words)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion 1.5."""
    return random_checkpoint("tiny-sd15", tmp_path_factory.mktemp("checkpoint") / "sd15")


def test_a_checkpoint_becomes_a_bundle_and_what_was_measured_is_shown(
    checkpoint: Path, tmp_path: Path
) -> None:
    done = exported(checkpoint, tmp_path / "made", "--recipe", "lcm")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'made'}\n"), done.stderr
    manifest = bundle.load(tmp_path / "made").manifest
    rows = {words[0]: words for line in done.stderr.splitlines() if (words := line.split())}
    for name, network in manifest.networks.items():
        plain, operators = (sum(d.values()) for d in (network.graph.plain, network.graph.operators))
        assert rows[name][1:5] == [network.precision, f"{plain:,}", "→", f"{operators:,}"]
    assert manifest.notes
    assert all(note in done.stderr for note in manifest.notes)
    assert manifest.defaults == recipes.load("lcm").defaults


def test_every_setting_of_the_library_is_an_option() -> None:
    settings = set(inspect.signature(export).parameters) - {"destination", "progress"}
    command = cli.main.commands["export"]
    assert {str(option.name) for option in command.params} - {"dest"} == settings


WRONG = {
    "unknown recipe": (["--recipe", "sd51"], "there is no recipe 'sd51'"),
    "unknown backend": (
        ["--backend", "trt"],
        "backend 'trt' is unknown; did you mean 'tensorrt'?; known: ",
    ),
    "unknown precision": (["--precision", "half"], "precision 'half' is unknown; known: fp32, "),
    "weight of words": (["--lora", "ink.safetensors:much"], "the weight 'much' of the LoRA ink"),
    "no checkpoint": ([], "there is no nothing: give a folder in diffusers' layout"),
    "no bundle": (["--graph-from", "nothing"], "there is no bundle 'nothing'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_clear_sentence_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    words, expected = WRONG[name]
    done = exported("nothing", tmp_path / "there", *words)
    assert done.exit_code == 2, done.stderr
    assert expected in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"cond_stage_model.weight": torch.zeros(1)}, file)
    for words, problem in (([], "is a pickle"), (["--allow-pickle"], "model.ckpt")):
        done = exported(file, tmp_path / "there", *words)
        assert done.exit_code == 2, done.stderr
        assert problem in done.stderr
        assert ("is a pickle" in done.stderr) == (words == [])
        assert list(tmp_path.iterdir()) == [file]


def test_a_recipe_of_another_family_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    done = exported(checkpoint, tmp_path / "there", "--recipe", "sdxl")
    assert done.exit_code == 2, done.stderr
    assert "recipe sdxl is for sdxl, the checkpoint is sd1" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_computes_something_else_is_no_mistake_of_the_users() -> None:
    @click.group(cls=type(cli.main))
    def group() -> None:
        pass

    @group.command()
    def differs() -> None:
        raise VerificationError("unet differs by 1")

    done = CliRunner().invoke(group, ["differs"])
    assert (done.exit_code, done.stderr) == (1, "sdfast: unet differs by 1\n")


def test_recipes_are_listed_with_what_they_are_for() -> None:
    done = sdfast("recipes")
    assert done.returncode == 0
    assert "sdxl-turbo (sdxl): text to pictures of 512×512 in 1 step" in done.stdout
    rows = json.loads(sdfast("recipes", "--json").stdout)
    assert tuple(row["name"] for row in rows) == recipes.names()
