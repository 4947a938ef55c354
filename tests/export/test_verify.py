"""What is compared with torch, and what is said of a network that differs from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdfast.bundle import Difference
from sdfast.export import random_checkpoint, sources, verify, weights
from sdfast.export.components import Component
from sdfast.export.networks import Options
from sdfast.export.plan import Planned, plan

ALL = Options()
DAMAGED = [
    "down_blocks.0.resnets.0.conv1.weight",
    "mid_block.attentions.0.proj_out.weight",
    "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2.weight",
    "conv_out.weight",
]


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Component:
    folder = tmp_path_factory.mktemp("checkpoint")
    return sources.read(random_checkpoint("tiny-sd15", folder)).components["unet"]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> list[Planned]:
    folder = tmp_path_factory.mktemp("checkpoint")
    return plan(sources.read(random_checkpoint("tiny-sd15", folder)), ALL)["unet"]


def laid(folder: Path, component: Component, planned: list[Planned]) -> verify.Opened:
    graphs = [(p.graph.model(), p.graph.weights) for p in planned]
    weights.as_graph(graphs, component.weights, folder / "unet.safetensors")
    for p, (model, _) in zip(planned, graphs, strict=True):
        (folder / f"{p.name}.onnx").write_bytes(model.SerializeToString())
    return verify.Opened(folder, planned, lambda name: "fp32")


def named(planned: list[Planned], name: str) -> Planned:
    return next(p for p in planned if p.name == name)


@pytest.mark.parametrize("weight", DAMAGED)
def test_one_altered_weight_is_found_where_it_is(
    tmp_path: Path, unet: Component, planned: list[Planned], weight: str
) -> None:
    altered = unet.weights[weight].clone()
    altered.view(-1)[7] += 3.0
    opened = laid(tmp_path, replace(unet, weights={**unet.weights, weight: altered}), planned)
    p, module = named(planned, "unet"), unet.module()
    examples = verify.examples(p, module, 2, ALL)
    found = verify.difference(opened.network("unet"), p, examples, opened.hoisted)
    assert not verify.within(found, "fp32", pixels=False)
    before = sorted(tmp_path.iterdir())
    where = verify.first_layer(
        tmp_path / "unet.onnx", "fp32", p, module, examples[0], opened.hoisted
    )
    assert where.startswith(f"{weight.removesuffix('.weight')}, whose relative difference is ")
    assert sorted(tmp_path.iterdir()) == before
    sentence = str(verify.refuse("unet", found, where))
    assert f"unet as exported differs from its module by {found.absolute:.3g}" in sentence
    assert weight.removesuffix(".weight") in sentence


def test_what_is_altered_in_a_projection_is_found_in_its_network(
    tmp_path: Path, unet: Component, planned: list[Planned]
) -> None:
    weight = "time_embedding.linear_1.weight"
    other = {**unet.weights, weight: unet.weights[weight] + 0.1}
    opened = laid(tmp_path, replace(unet, weights=other), planned)
    p = named(planned, "time_projection")
    examples = verify.examples(p, unet.module(), 2, ALL)
    found = verify.difference(opened.network(p.name), p, examples, {})
    assert not verify.within(found, "fp32", pixels=False)


def test_an_untouched_network_is_right_by_far(
    tmp_path: Path, unet: Component, planned: list[Planned]
) -> None:
    opened = laid(tmp_path, unet, planned)
    for p in planned:
        examples = verify.examples(p, unet.module(), 2, ALL)
        found = verify.difference(opened.network(p.name), p, examples, opened.hoisted)
        assert found.relative < 0.1 * verify.BOUNDS["fp32"].relative


def test_examples_are_of_two_batches_and_two_resolutions_unless_these_are_fixed(
    unet: Component, planned: list[Planned]
) -> None:
    p = named(planned, "unet")
    shapes = [e.inputs["latent"].shape for e in verify.examples(p, unet.module(), 2, ALL)]
    assert [tuple(s) for s in shapes] == [(1, 4, 8, 8), (2, 4, 4, 6)]
    fixed = replace(ALL, width=10)
    shapes = [e.inputs["latent"].shape for e in verify.examples(p, unet.module(), 2, fixed)]
    assert [tuple(s) for s in shapes] == [(1, 4, 8, 10), (2, 4, 4, 10)]


def test_the_distance_of_arrays() -> None:
    want = np.array([[4.0, -2.0], [0.0, 1.0]])
    got = want + np.array([[0.0, 0.5], [0.0, -0.1]])
    found = verify.compare(got, want)
    assert found.absolute == pytest.approx(0.5)
    assert found.relative == pytest.approx(0.125)
    assert found.mean == pytest.approx(0.15)
    assert found.cosine == pytest.approx(
        float((got * want).sum() / np.linalg.norm(got) / np.linalg.norm(want))
    )
    assert verify.compare(want, want) == Difference(0, 0, 0, pytest.approx(1))
    zeros = np.zeros(3)
    assert verify.compare(zeros, zeros).cosine == 1
    assert verify.compare(want[0], zeros[:2]).cosine == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_never_near_enough(value: float) -> None:
    found = verify.compare(np.array([1.0, value]), np.array([1.0, 2.0]))
    for kind in verify.BOUNDS:
        assert not verify.within(found, kind, pixels=False)
        assert not verify.within(found, kind, pixels=True)


def test_the_worst_of_all_outputs_and_examples_counts(planned: list[Planned]) -> None:
    p = named(planned, "unet")
    ones = torch.ones(1, 4)
    inputs = dict.fromkeys(p.graph.inputs(), ones)
    made = [verify.Example(inputs, {"noise": ones * k, "other": ones}) for k in (1, 2)]
    gaps = iter([0.5, 0.25])

    def compute(arrays: object) -> dict[str, np.ndarray]:
        gap = next(gaps)
        return {"noise": np.full((1, 4), gap + 1), "other": np.full((1, 4), 1 + gap / 10)}

    found = verify.difference(compute, p, made, {})
    assert found.absolute == 0.75
    assert found.relative == 0.5
    assert found.mean == pytest.approx((0.5 + 0.05 + 0.75 + 0.025) / 4)


def test_psnr_is_that_of_the_textbook() -> None:
    white, black = np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)
    assert verify.psnr(white, white) == np.inf
    assert verify.psnr(white, black) == 0
    one = black.copy()
    one[0, 0, 0] = 10
    assert verify.psnr(one, black) == pytest.approx(10 * np.log10(255**2 / (100 / 12)))
