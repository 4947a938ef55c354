"""Every network in every form computes what its module does, at two batch sizes and resolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import onnx
import pytest

from sdfast.errors import CheckpointError
from sdfast.export import manifest, random_checkpoint, sources, verify, weights
from sdfast.export.components import Checkpoint, Component
from sdfast.export.graph import operators
from sdfast.export.networks import PLAIN, Options, text_encoder, unet, vae
from sdfast.export.plan import Planned, plan, shapes_of

CheckpointOf = Callable[[str], Checkpoint]
ALL = Options()
OPTIONS = {
    "plain": PLAIN,
    **{f.name: replace(PLAIN, **{f.name: True}) for f in fields(Options) if f.type == "bool"},
    "all": ALL,
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """family → its checkpoint, written and read once."""
    place = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda family: sources.read(random_checkpoint(f"tiny-{family}", place / family)))


def laid(planned: list[Planned], component: Component, folder: Path) -> verify.Opened:
    """A component's networks, written to `folder`."""
    graphs = [(p.graph.model(), p.graph.weights) for p in planned]
    weights.as_checkpoint(graphs, component.weights, folder / "weights.safetensors")
    for p, (model, _) in zip(planned, graphs, strict=True):
        (folder / f"{p.name}.onnx").write_bytes(model.SerializeToString())
    return verify.Opened(folder, planned, lambda network: "fp32")


def require_equal(checkpoint: Checkpoint, options: Options, folder: Path) -> None:
    for part, planned in plan(checkpoint, options).items():
        place = folder / part
        place.mkdir()
        component = checkpoint.components[part]
        module, opened = component.module(), laid(planned, component, place)
        for p in planned:
            made = verify.examples(p, module, manifest.unit(checkpoint), options)
            found = verify.difference(opened.network(p.name), p, made, opened.hoisted)
            pixels = "image" in made[0].expected
            assert found.absolute <= 1 if pixels else found.relative < 1e-4, (p.name, found)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_computes_the_same(read: CheckpointOf, tmp_path: Path, name: str) -> None:
    require_equal(read("sd15"), OPTIONS[name], tmp_path)


@pytest.mark.parametrize(
    "family", ["sd21", "sdxl", "sdxl-refiner", "lcm", "sd15-controlnet", "sdxl-controlnet"]
)
@pytest.mark.parametrize("name", ["plain", "all"])
def test_every_family_computes_the_same(
    read: CheckpointOf, tmp_path: Path, family: str, name: str
) -> None:
    checkpoint = read(family)
    if name == "plain" and family.startswith("sdxl"):  # SD's VAE is tested already
        parts = {k: v for k, v in checkpoint.components.items() if k != "vae"}
        checkpoint = replace(checkpoint, components=parts)
    require_equal(checkpoint, OPTIONS[name], tmp_path)


def test_tiny_autoencoders_compute_the_same(
    read: CheckpointOf, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tiny = sources.read_vae(random_checkpoint("tiny-taesd", tmp_path_factory.mktemp("taesd")))
    parts = {"unet": read("sd15").components["unet"], "vae": tiny, "preview": tiny}
    checkpoint = replace(read("sd15"), components=parts)
    assert [p.name for p in plan(checkpoint, ALL)["preview"]] == ["preview_decoder"]
    require_equal(replace(checkpoint, components=parts), ALL, tmp_path)


@pytest.mark.parametrize("sides", [(8, 8), (8, 16)])
def test_fixed_sides_need_no_arithmetic_of_shapes(
    read: CheckpointOf, tmp_path: Path, sides: tuple[int, int]
) -> None:
    height, width = sides
    options = replace(ALL, height=height, width=width)
    for planned in plan(read("sd15"), options).values():
        for p in planned:
            assert "Shape" not in operators(p.graph.model()), p.name
    unet_inputs = next(p for p in plan(read("sd15"), options)["unet"] if p.name == "unet")
    assert unet_inputs.graph.inputs()["latent"] == ["rows", 4, height, width]
    require_equal(read("sd15"), options, tmp_path)


def test_what_sides_vary_is_named(read: CheckpointOf) -> None:
    for planned in plan(read("sd15"), ALL).values():
        for p in planned:
            for value in p.graph.model().graph.output:
                shape = value.type.tensor_type.shape.dim
                assert shape[0].dim_param in ("rows", "batch")


def test_each_option_has_its_operators(read: CheckpointOf) -> None:
    def counted(options: Options) -> dict[str, int]:
        (network,) = (p for p in plan(read("sd15"), options)["unet"] if p.name == "unet")
        return operators(network.graph.model())

    plain = counted(PLAIN)
    assert {"Softmax", "InstanceNormalization"} <= plain.keys()
    attention = counted(OPTIONS["fused_attention"])
    assert attention["Attention"] == plain["Softmax"]
    norms = counted(OPTIONS["fused_norms"])
    assert norms["GroupNormalization"] == plain["InstanceNormalization"]
    assert counted(OPTIONS["fused_projections"])["MatMul"] < plain["MatMul"]
    assert counted(OPTIONS["hoisted_context"])["MatMul"] < plain["MatMul"]
    assert "Cos" in plain
    assert "Cos" not in counted(OPTIONS["hoisted_time"])
    assert sum(counted(ALL).values()) < 0.6 * sum(plain.values())


def test_graphs_are_valid(read: CheckpointOf) -> None:
    for family in ("sd15", "sdxl", "sdxl-controlnet"):
        for planned in plan(read(family), ALL).values():
            for p in planned:
                model = weights.as_inputs(p.graph.model())
                onnx.checker.check_model(model, full_check=True)


def test_configurations_that_cannot_be_written_are_named(read: CheckpointOf) -> None:
    parts = read("sd15").components
    odd = {"class_embed_type": "timestep"}
    with pytest.raises(CheckpointError, match="class_embed_type is 'timestep'; only None"):
        unet.unet(shapes_of(parts["unet"]), {**parts["unet"].config, **odd}, ALL)
    blocks = {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}
    with pytest.raises(CheckpointError, match="cannot be exported: AttnDownBlock2D"):
        unet.unet(shapes_of(parts["unet"]), {**parts["unet"].config, **blocks}, ALL)
    with pytest.raises(CheckpointError, match="the VAE's act_fn is 'relu'"):
        vae.decoder(shapes_of(parts["vae"]), {**parts["vae"].config, "act_fn": "relu"}, ALL)
    text = parts["text_encoder"]
    with pytest.raises(CheckpointError, match="hidden_act is 'relu'; only quick_gelu and gelu"):
        text_encoder.text_encoder(
            shapes_of(text), {**text.config, "hidden_act": "relu"}, ALL, penultimate=False
        )
