"""The demo's ControlNet: what is shipped, and whether the shape lies where a map has it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file

from sdfast import store
from sdfast.export import sources
from sdfast.export.demo import control, models, outlines, scenes
from sdfast.export.demo.sampling import sample

LIMIT = 2_000_000  # bytes of weights


@pytest.fixture(scope="module")
def model() -> models.Model:
    return models.load()


@pytest.fixture(scope="module")
def steering() -> ControlNetModel:
    read = ControlNetModel.from_pretrained(control.FOLDER, torch_dtype=torch.float32)
    assert isinstance(read, ControlNetModel)
    return read.eval().requires_grad_(False)


def test_it_is_a_controlnet_of_the_demo_and_small() -> None:
    checkpoint = sources.read(control.FOLDER)
    assert (checkpoint.family, checkpoint.task) == ("sd1", "control")
    (file,) = control.FOLDER.glob("*.safetensors")
    assert file.stat().st_size <= LIMIT


def test_its_bundle_is_of_its_weights_and_small() -> None:
    bundle = store.load("demo-control")
    assert bundle.manifest.task == "control"
    assert sum(f.stat().st_size for f in bundle.path.rglob("*")) <= LIMIT
    network = bundle.manifest.networks["controlnet"]
    theirs = load_file(bundle.path / network.weights[0])
    ours = load_file(control.FOLDER / "diffusion_pytorch_model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def overlaps(
    model: models.Model, steering: ControlNetModel, count: int, seed: int, weight: float = 1.0
) -> list[float]:
    """Of pictures with their maps: combinations that training never saw, shapes anywhere."""
    rng = random.Random(seed)
    wanted = [scenes.sample(rng, held_out=True) for _ in range(count)]
    places = [scenes.anywhere(scene, rng) for scene in wanted]
    steered = control.controlled(model.denoiser, steering, control.condition(places), weight)
    prompts = [scenes.loose_caption(scene, rng) for scene in wanted]
    drawn = sample(steered, model.autoencoder, model.text, model.tokenizer, prompts)
    return [scenes.overlap(p, at) for p, at in zip(drawn, places, strict=True)]


def test_shapes_lie_where_the_maps_have_them(
    model: models.Model, steering: ControlNetModel
) -> None:
    assert np.mean([o >= 0.8 for o in overlaps(model, steering, 10, seed=31)]) >= 0.9
    assert np.mean(overlaps(model, steering, 10, seed=31, weight=0.0)) < 0.5


@pytest.mark.slow
def test_shapes_lie_where_100_maps_have_them(
    model: models.Model, steering: ControlNetModel
) -> None:
    assert np.mean([o >= 0.8 for o in overlaps(model, steering, 100, seed=32)]) >= 0.9


def test_a_map_is_the_class_of_each_pixel() -> None:
    at = outlines.Outline("star", 40.0, 90.0, 20.0)
    pixels = np.asarray(outlines.segmentation(at))
    assert (pixels[outlines.covers(at)] == outlines.CLASSES["star"]).all()
    assert not pixels[~outlines.covers(at)].any()


def test_shapes_anywhere_are_whole_and_read_back() -> None:
    rng = random.Random(4)
    for _ in range(100):
        scene = scenes.sample(rng)
        at = scenes.anywhere(scene, rng)
        assert not outlines.covers(at)[[0, -1]].any()
        assert not outlines.covers(at)[:, [0, -1]].any()
        assert scenes.overlap(scenes.paint(scene, at), at) > 0.8
