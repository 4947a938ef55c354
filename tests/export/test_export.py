"""The exporter on the demo checkpoint: one export for the whole file, compared with the committed
bundle and with torch."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdfast import store
from sdfast.backends import open_engine
from sdfast.bundle import Bundle
from sdfast.errors import CheckpointError, OutputError
from sdfast.export import checkpoint as checkpoints
from sdfast.export import export, exporter, graphs, random_checkpoint
from sdfast.export.demo.models import CHECKPOINT

NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    stages: list[str] = []
    place = tmp_path_factory.mktemp("exported") / "demo"
    made = export(CHECKPOINT, place, progress=lambda stage, done, total: stages.append(stage))
    return made, stages


def test_the_committed_bundle_is_what_the_checkpoint_exports_to(
    exported: tuple[Bundle, list[str]],
) -> None:
    again, committed = exported[0].manifest, store.load("demo").manifest
    weights = {name for name in committed.files if not name.endswith(".onnx")}
    assert {n: again.files[n] for n in weights} == {n: committed.files[n] for n in weights}
    for part in ("networks", "betas", "sizes", "context", "defaults", "latent_scale", "prediction"):
        ours, theirs = getattr(again, part), getattr(committed, part)
        if part == "networks":  # measured differences may move in their last digits
            ours, theirs = (
                {k: (n.file, n.inputs, n.outputs, n.parameters) for k, n in d.items()}
                for d in (ours, theirs)
            )
        assert ours == theirs, part


def test_every_stage_is_told(exported: tuple[Bundle, list[str]]) -> None:
    stages = exported[1]
    assert [s for s in stages if s.startswith("exporting")] == [
        f"exporting {name}" for name in NETWORKS
    ]
    assert stages[-1] == "done"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_their_modules_at_other_shapes(
    exported: tuple[Bundle, list[str]], name: str
) -> None:
    made = exported[0]
    source = graphs.sources(checkpoints.read(CHECKPOINT))[name]
    engine = open_engine(made.network(name))
    for seed, (batch, larger) in enumerate([(1, True), (4, False)], start=100):
        inputs = graphs.example(source, batch, larger, seed)
        with torch.no_grad():
            expected = source.module(*inputs.values())
        wanted = [e.numpy() for e in (expected if isinstance(expected, tuple) else (expected,))]
        arrays = {key: value.numpy() for key, value in inputs.items()}
        for got, want in zip(exporter.run(engine, arrays, wanted, source), wanted, strict=True):
            gap = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
            # One level where rounding falls to the other side; else float32 sums in another order.
            assert gap <= (1 if want.dtype == np.uint8 else 1e-4 * np.abs(want).max())


def test_the_manifest_tells_how_far_each_network_is_from_torch(
    exported: tuple[Bundle, list[str]],
) -> None:
    for name, network in exported[0].manifest.networks.items():
        levels = name == "vae_decoder"
        assert network.difference.absolute <= 1.0 if levels else network.difference.relative < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_graphs_are_portable_and_point_into_safetensors(
    exported: tuple[Bundle, list[str]], name: str
) -> None:
    made = exported[0]
    model = onnx.load(made.network(name), load_external_data=False)
    assert model.opset_import[0].version >= 23
    assert {node.domain for node in model.graph.node} == {""}  # standard operators alone
    (weights,) = made.manifest.networks[name].weights
    file = made.path / weights
    stored = load_file(file)
    raw = file.read_bytes()
    outside = [i for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    assert {i.name for i in outside} == set(stored)
    for initializer in outside:
        where = {entry.key: entry.value for entry in initializer.external_data}
        assert where["location"] == file.name
        start, length = int(where["offset"]), int(where["length"])
        assert raw[start : start + length] == stored[initializer.name].numpy().tobytes()
    inside = sum(len(i.raw_data) for i in model.graph.initializer)
    assert inside < 10_000  # no weight is left in the graph, a causal mask and scalars are


def test_weights_are_the_checkpoints_own(exported: tuple[Bundle, list[str]]) -> None:
    ours = load_file(exported[0].path / "unet.safetensors")
    theirs = load_file(CHECKPOINT / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(ours) <= set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float16}


def test_the_unet_uses_the_operators_of_its_opset(exported: tuple[Bundle, list[str]]) -> None:
    model = onnx.load(exported[0].network("unet"), load_external_data=False)
    operators = {node.op_type for node in model.graph.node}
    assert {"Attention", "GroupNormalization"} <= operators


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


def test_random_checkpoints_have_the_demos_sizes(tmp_path: Path) -> None:
    made = random_checkpoint("demo", tmp_path / "random", seed=3)
    for part in ("unet", "vae", "text_encoder"):
        file = next((made / part).glob("*.safetensors")).name
        ours, theirs = (load_file(place / part / file) for place in (made, CHECKPOINT))
        assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}
        if part != "text_encoder":  # whose vocabulary is trained on fewer captions
            assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    with pytest.raises(CheckpointError, match="known: demo, sd1"):
        random_checkpoint("sd9", tmp_path / "no")


def unlink(place: Path, name: str) -> None:
    (place / name).unlink()


def edit(place: Path, name: str, old: str, new: str) -> None:
    file = place / name
    file.write_text(file.read_text().replace(old, new))


def poison(place: Path) -> None:
    file = place / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, file)


def truncate(place: Path) -> None:
    file = place / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda p: unlink(p, "model_index.json"), r"model_index\.json cannot be read"),
        (lambda p: unlink(p, "unet/config.json"), "unet cannot be loaded"),
        (lambda p: unlink(p, "tokenizer/tokenizer.json"), r"tokenizer\.json is missing"),
        (lambda p: unlink(p, "scheduler/scheduler_config.json"), "scheduler_config"),
        (
            lambda p: unlink(p, "unet/diffusion_pytorch_model.safetensors"),
            r"unet has no \.safetensors",
        ),
        (
            lambda p: edit(p, "model_index.json", "CLIPTextModel", "T5EncoderModel"),
            "is a T5EncoderModel; this exporter takes CLIPTextModel",
        ),
        (lambda p: edit(p, "model_index.json", "{", "["), "cannot be read"),
        (poison, r"conv_in\.bias of .*unet holds NaN"),
        (truncate, "vae cannot be loaded"),
    ],
)
def test_a_checkpoint_that_is_wrong_says_what(
    checkpoint: Path, tmp_path: Path, damage: object, word: str
) -> None:
    damage(checkpoint)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=word):
        export(checkpoint, tmp_path / "made")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["checkpoint"]


def test_a_destination_that_is_there_is_kept(tmp_path: Path, copied: Path) -> None:
    before = (copied / "bundle.json").read_bytes()
    with pytest.raises(OutputError, match="pass --overwrite"):
        export(CHECKPOINT, copied)
    assert (copied / "bundle.json").read_bytes() == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("keep me")
    with pytest.raises(OutputError, match="is no bundle"):
        export(CHECKPOINT, mine, overwrite=True)
    assert (mine / "letter.txt").read_text() == "keep me"


def test_a_killed_export_leaves_no_half_bundle_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    place = tmp_path / "made"
    code = (
        "from pathlib import Path; from sdfast.export import export;"
        f"export(Path({str(CHECKPOINT)!r}), Path({str(place)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".sdfast-export-*/text_encoder.onnx")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not place.exists()
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    with exporter._new_folder(place):  # as the next export begins
        assert not left[0].exists()
    assert list(tmp_path.iterdir()) == [place]


def test_overwrite_replaces_a_bundle(copied: Path) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    with exporter._new_folder(copied) as folder:
        (folder / "bundle.json").write_text(json.dumps(manifest | {"name": "new"}))
    assert json.loads((copied / "bundle.json").read_text())["name"] == "new"
    assert sorted(f.name for f in copied.parent.iterdir()) == ["copied"]
