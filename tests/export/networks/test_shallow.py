"""unet_shallow beside the whole U-Net: with features of the same latent it computes the same, and
what it does not need is not in its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from sdfast import networks, store
from sdfast.bundle import Bundle
from sdfast.export import export, recipes, sources
from sdfast.export.graph import operators
from sdfast.export.networks import PLAIN, Options, unet
from sdfast.export.plan import plan

BundleOf = Callable[[str], Bundle]
CheckpointOf = Callable[..., Path]
Arrays = dict[str, NDArray[np.float32]]


def inputs(bundle: Bundle, seed: int) -> Arrays:
    """Random values for what the U-Net reads: two rows, a latent of 8 × 16."""
    rng, free = np.random.default_rng(seed), {"latent": (2, 8, 16), "keys_values": (2, 77)}
    found = {}
    for name, spec in bundle.manifest.networks["unet"].inputs.items():
        sides = iter(free.get(name, (2,)))
        shape = [next(sides) if side is None else side for side in spec.shape]
        found[name] = rng.standard_normal(shape, np.float32)
    return found


def computed(bundle: Bundle, name: str, given: Mapping[str, NDArray[np.float32]]) -> Arrays:
    network = bundle.manifest.networks[name]
    session = onnxruntime.InferenceSession(str(bundle.network(name)))
    values = session.run(list(network.outputs), {key: given[key] for key in network.inputs})
    return dict(zip(network.outputs, values, strict=True))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_with_features_of_the_same_latent_it_computes_the_same(
    bundle_of: BundleOf, family: str
) -> None:
    bundle = bundle_of(family)
    given = inputs(bundle, 0)
    whole = computed(bundle, "unet", given)
    part = computed(bundle, "unet_shallow", {**given, "features": whole["features"]})
    assert np.abs(part["noise"] - whole["noise"]).max() <= 1e-5 * np.abs(whole["noise"]).max()
    other = computed(bundle, "unet", inputs(bundle, 1))["features"]
    stale = computed(bundle, "unet_shallow", {**given, "features": other})
    assert np.abs(stale["noise"] - whole["noise"]).max() > 1e-3 * np.abs(whole["noise"]).max()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_it_is_a_small_part_of_the_whole_and_stores_nothing(
    bundle_of: BundleOf, family: str
) -> None:
    bundle = bundle_of(family)
    whole, part = (bundle.manifest.networks[n] for n in ("unet", "unet_shallow"))
    assert part.weights == whole.weights
    assert part.parameters < 0.3 * whole.parameters
    assert sum(part.graph.operators.values()) < 0.3 * sum(whole.graph.operators.values())
    # SDXL's outermost level reads nothing of the prompt.
    assert ("keys_values" in part.inputs) == (family == "sd15")


@pytest.mark.parametrize("options", [PLAIN, Options()])
def test_it_computes_its_own_layers_part_alone_of_what_all_layers_read(
    checkpoint_of: CheckpointOf, options: Options
) -> None:
    checkpoint = sources.read(checkpoint_of("sd15"))
    planned = {p.name: p for p in plan(checkpoint, options)["unet"]}
    part = planned["unet_shallow"].graph
    projections = {n for n in part.weights if "time_emb_proj" in n or "attn2.to_k" in n}
    assert len(projections) == (0 if options.hoisted_time else 3)  # weight and bias, weight
    slices = operators(part.model()).get("Slice", 0)
    assert slices == (3 if options.hoisted_time else 0)  # of the time, the keys, the values


def test_more_of_the_last_blocks_layers_can_be_the_outermost(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unet, "OUTER", 2)
    recipe = tmp_path / "unet.toml"
    text = (store.packaged() / "sd15.toml").read_text()
    recipe.write_text(text.replace('    "unet_adapters",\n', ""))
    bundle = export(checkpoint_of("sd15"), tmp_path / "made", recipe=recipe)  # which verifies it
    given = inputs(bundle, 0)
    whole = computed(bundle, "unet", given)
    part = computed(bundle, "unet_shallow", {**given, "features": whole["features"]})
    assert np.abs(part["noise"] - whole["noise"]).max() <= 1e-5 * np.abs(whole["noise"]).max()


def test_without_it_the_unet_gives_out_no_features(checkpoint_of: CheckpointOf) -> None:
    checkpoint = sources.read(checkpoint_of("sd15"))
    others = [name for name in networks.NETWORKS if name != "unet_shallow"]
    for names, outputs in ((networks.NETWORKS, ["features", "noise"]), (others, ["noise"])):
        planned = {p.name: p for p in plan(checkpoint, Options(), names)["unet"]}
        model = planned["unet"].graph.model()
        assert [value.name for value in model.graph.output] == outputs
        assert ("unet_shallow" in planned) == (len(outputs) == 2)
        adapters = planned["unet_adapters"].graph.model()
        assert [value.name for value in adapters.graph.output] == ["noise"]


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_of_a_model_that_draws_lists_it(name: str) -> None:
    listed = recipes.load(name).networks
    assert ("unet_shallow" in listed) == ("unet" in listed)
    tensorrt = recipes.load(name, "tensorrt").precision
    assert tensorrt.get("unet_shallow") == tensorrt.get("unet")
