"""The exporter on the demo checkpoint: one export for the whole file, compared with the committed
bundle and with torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from sdfast import store
from sdfast.bundle import Bundle
from sdfast.export import export, recipes, sources, verify
from sdfast.export.components import Checkpoint
from sdfast.export.demo.models import CHECKPOINT
from sdfast.export.plan import Planned, plan

NETWORKS = (
    "text_encoder",
    "time_projection",
    "context_projection",
    "unet",
    "unet_shallow",
    "unet_adapters",
    "vae_decoder",
    "vae_encoder",
)
COMPONENTS = {"text_encoder": "text_encoder", "vae_decoder": "vae", "vae_encoder": "vae"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    stages: list[str] = []
    place = tmp_path_factory.mktemp("exported") / "demo"
    made = export(
        CHECKPOINT,
        place,
        recipe="demo",
        progress=lambda stage, done, total: stages.append(stage),
    )
    return made, stages


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return sources.read(CHECKPOINT)


@pytest.fixture(scope="module")
def planned(checkpoint: Checkpoint) -> dict[str, list[Planned]]:
    """By component."""
    return plan(checkpoint, recipes.load("demo").options)


def test_the_committed_bundle_is_what_the_checkpoint_exports_to(
    exported: tuple[Bundle, list[str]],
) -> None:
    again, committed = exported[0], store.load("demo")
    ours, theirs = again.manifest, committed.manifest
    graphs = {name for name in ours.files if name.endswith(".onnx")}
    assert ours.files.keys() == theirs.files.keys()
    assert all(ours.files[name] == theirs.files[name] for name in set(ours.files) - graphs)
    for name in graphs:  # protobuf promises no order of bytes
        assert onnx.load(again.path / name, load_external_data=False) == onnx.load(
            committed.path / name, load_external_data=False
        )
    for part in ("betas", "sizes", "context", "defaults", "latent_scale", "prediction"):
        assert getattr(ours, part) == getattr(theirs, part), part
    for name, network in ours.networks.items():  # what is measured may move in its last digits
        same = replace(network, difference=theirs.networks[name].difference)
        assert same == theirs.networks[name]


def test_every_stage_is_told(exported: tuple[Bundle, list[str]]) -> None:
    stages = exported[1]
    assert [s for s in stages if s.startswith("exporting")] == [
        f"exporting {name}" for name in NETWORKS
    ]
    assert stages[-1] == "done"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_their_modules_at_other_shapes(
    exported: tuple[Bundle, list[str]],
    checkpoint: Checkpoint,
    planned: dict[str, list[Planned]],
    name: str,
) -> None:
    part = COMPONENTS.get(name, "unet")
    opened = verify.Opened(exported[0].path, planned[part], lambda network: "fp32")
    (network,) = (p for p in planned[part] if p.name == name)
    module = checkpoint.components[part].module()
    for seed, (batch, height, width) in enumerate([(1, 20, 12), (4, 8, 16)], start=100):
        inputs = verify.random_inputs(network, network.shapes(batch, height, width), seed)
        with torch.no_grad():
            expected = network.reference(module, inputs)
        got = opened.network(name)(verify.feed(network, inputs, opened.hoisted))
        assert got.keys() == expected.keys()
        for output, want in expected.items():
            gap = np.abs(got[output].astype(np.float64) - want.numpy().astype(np.float64)).max()
            # One level where rounding falls to the other side; else float32 sums in another order.
            levels = want.dtype == torch.uint8
            assert gap <= (1 if levels else 1e-4 * want.abs().max())


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
    assert {i.name.partition("@")[0] for i in outside} <= set(stored)
    for initializer in outside:
        where = {entry.key: entry.value for entry in initializer.external_data}
        assert where["location"] == file.name
        start, length = int(where["offset"]), int(where["length"])
        part, _, row = initializer.name.partition("@")  # the rows from there, as many as it has
        tensor = stored[part][int(row) :][: initializer.dims[0]] if row else stored[part]
        assert raw[start : start + length] == tensor.numpy().tobytes()
    inside = sum(len(i.raw_data) for i in model.graph.initializer)
    assert inside < 10_000  # no weight is left in the graph, a causal mask and scalars are


def test_weights_are_the_checkpoints_own_and_every_one_is_read(
    exported: tuple[Bundle, list[str]],
) -> None:
    ours = load_file(exported[0].path / "unet.safetensors")
    theirs = load_file(CHECKPOINT / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float16}


def test_the_unet_uses_the_operators_of_its_opset(exported: tuple[Bundle, list[str]]) -> None:
    model = onnx.load(exported[0].network("unet"), load_external_data=False)
    operators = {node.op_type for node in model.graph.node}
    assert {"Attention", "GroupNormalization"} <= operators
