"""T2I-Adapters: exported, and drawn with by the runtime as by diffusers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import feeds
import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionXLAdapterPipeline,
    T2IAdapter,
)
from PIL import Image

import sdfast
from sdfast import schedules
from sdfast.backends import Options
from sdfast.bundle import noise_schedule
from sdfast.errors import CheckpointError, InvalidRequest, RecipeError
from sdfast.export import export, recipes, sources
from sdfast.export.networks import unet
from sdfast.export.verify import psnr

from .conftest import BundleOf, CheckpointOf
from .loops import Networks, repeated
from .pictures import PROMPT, SEED, Drawn, assert_equal, opened, ours, start
from .test_image_families import no_image, unsteered

NEGATIVE = "a large red circle"
SIDE, STEPS, GUIDANCE = 128, 4, 5.0
RUN: dict[str, Any] = {
    "sampler": "euler",
    "schedule": "leading",
    "negative_prompt": NEGATIVE,
    "steps": STEPS,
    "guidance": GUIDANCE,
    "width": SIDE,
    "height": SIDE,
}


@pytest.fixture(scope="module")
def image() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def saved(folder: Path, seed: int = 0, **config: Any) -> Path:
    """The folder of a T2I-Adapter that diffusers made."""
    torch.manual_seed(seed)
    T2IAdapter(num_res_blocks=1, **config).save_pretrained(folder)
    return folder


def called(kind: Any, folder: Path, adapter: Any, image: Any, **more: Any) -> Drawn:
    """diffusers' picture, from the noise that ours begins with: its pipelines begin at σ."""
    pipe, seen = opened(kind, folder, adapter=adapter), list[torch.Tensor]()
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading"
    )
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS}
    call |= {"guidance_scale": GUIDANCE, "width": SIDE, "height": SIDE, "image": image, **more}
    begun = start(pipe.scheduler, STEPS, SIDE, SIDE)
    drawn = pipe(callback=lambda step, t, latents: seen.append(latents), **call, **begun)
    return Drawn(seen[-1].numpy(), np.asarray(drawn.images[0]))


KINDS = [("sd15", StableDiffusionAdapterPipeline), ("sdxl", StableDiffusionXLAdapterPipeline)]


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_one_weighted_steers_as_in_diffusers(
    family: str, kind: Any, image: Image.Image, checkpoint_of: CheckpointOf, bundle_of: BundleOf
) -> None:
    """SDXL's for a part of the steps; the other pipeline has no such parameter."""
    xl, name = family == "sdxl", f"{family}-t2i-adapter"
    adapter = T2IAdapter.from_pretrained(checkpoint_of(name))
    more = {"adapter_conditioning_scale": 0.7} | (
        {"adapter_conditioning_factor": 0.5} if xl else {}
    )
    want = called(kind, checkpoint_of(family), adapter, image, **more)
    control = {"bundle": str(bundle_of(name).path), "image": image, "weight": 0.7}
    got = ours(bundle_of(family), control=control | ({"end": 0.5} if xl else {}), **RUN)
    assert_equal(got, want)
    assert psnr(got.image, ours(bundle_of(family), **RUN).image) < 40  # it does steer
    if xl:  # and not as at every step: by more than what is equal may differ
        with pytest.raises(AssertionError):
            assert_equal(ours(bundle_of(family), control=control, **RUN), want)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_several_add_up_as_in_diffusers(
    family: str,
    kind: Any,
    image: Image.Image,
    checkpoint_of: CheckpointOf,
    bundle_of: BundleOf,
    tmp_path: Path,
) -> None:
    places = [checkpoint_of(f"{family}-t2i-adapter", seed) for seed in (0, 1)]
    adapter = MultiAdapter([T2IAdapter.from_pretrained(place) for place in places])
    maps, weights = [image, image.rotate(90)], [0.8, -0.5]
    folder = checkpoint_of(family)
    want = called(kind, folder, adapter, maps, adapter_conditioning_scale=weights)
    bundles = [bundle_of(f"{family}-t2i-adapter"), export(places[1], tmp_path / "other")]
    control = [
        {"bundle": str(b.path), "image": m, "weight": w}
        for b, m, w in zip(bundles, maps, weights, strict=True)
    ]
    assert_equal(ours(bundle_of(family), control=control, **RUN), want)


def test_one_that_sees_grey_levels_steers_as_in_diffusers(
    image: Image.Image, checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    """As those for sketches and lines do; a picture in colours is turned grey."""
    folder = saved(tmp_path / "grey", channels=[32, 64], in_channels=1)
    adapter = T2IAdapter.from_pretrained(folder)
    path = str(export(folder, tmp_path / "bundle").path)
    grey, kind = image.convert("L"), StableDiffusionAdapterPipeline
    want = called(kind, checkpoint_of("sd15"), adapter, grey)
    for given in (grey, image):
        got = ours(bundle_of("sd15"), control={"bundle": path, "image": given}, **RUN)
        assert_equal(got, want)


def test_controlnets_and_adapters_steer_together_each_in_its_part_of_the_steps(
    image: Image.Image, bundle_of: BundleOf
) -> None:
    """A ControlNet at steps 0 and 1, an adapter at 1 and 2: what a loop over the networks draws."""
    bundle, names = bundle_of("sd15"), ("sd15-controlnet", "sd15-t2i-adapter")
    controls = [
        {"bundle": str(bundle_of(name).path), "image": image, "weight": 0.7, **part}
        for name, part in zip(names, ({"end": 0.5}, {"start": 0.25, "end": 0.75}), strict=True)
    ]
    got = ours(bundle, control=controls, **RUN)
    run = Networks(bundle)
    controlnet, adapter = (Networks(bundle_of(name)) for name in names)
    pixels = np.asarray(image).transpose(2, 0, 1)[None] / np.float32(255)
    rows = run.conditions([PROMPT, NEGATIVE], SIDE, SIDE) | no_image(bundle)
    rows |= {"condition": np.repeat(pixels, 2, axis=0), "scale": np.full(2, 0.7, np.float32)}
    added = {n: np.float32(0.7) * a for n, a in adapter("t2i_adapter", rows).items()}
    times: list[float] = []

    def guided(latent: Any, t: float) -> Any:
        step = len(times)
        times.append(t)
        here = rows | repeated(latent, t, 2) | unsteered(bundle)
        if step in (0, 1):
            here |= controlnet("controlnet", here)
        noise = run.noise(here | (added if step in (1, 2) else {}), "unet_adapters")
        return noise[1:] + GUIDANCE * (noise[:1] - noise[1:])

    levels = schedules.sigmas("leading", STEPS, noise_schedule(bundle.betas))
    draw = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(SEED))
    want = run.draw(draw.numpy() * (levels[0] ** 2 + 1) ** 0.5, levels, guided)
    assert_equal(got, want)


def test_where_guidance_begins_late_and_images_have_maps_of_their_own(
    image: Image.Image, bundle_of: BundleOf
) -> None:
    """Each picture is that which is drawn alone."""
    path, other = str(bundle_of("sd15-t2i-adapter").path), image.rotate(90)
    run = RUN | {"guidance_interval": (1.0, 5.0)}
    pipeline = sdfast.load(bundle_of("sd15").path, "onnxruntime", threads=1)
    maps = [image, other, image]
    together = pipeline("a", seed=5, count=3, control={"bundle": path, "image": maps}, **run).images
    for k, (one, drawn) in enumerate(zip(maps, together, strict=True)):
        alone = pipeline("a", seed=5 + k, control={"bundle": path, "image": one}, **run).images[0]
        assert psnr(np.asarray(drawn), np.asarray(alone)) >= 40
    pipeline.close()


CONFIGS: dict[str, dict[str, Any]] = {
    "light": {"adapter_type": "light_adapter", "channels": [32, 64]},
    "of one level": {"channels": [32]},
    "that begins lower": {"channels": [32, 64], "downscale_factor": 16},
    "of SDXL, for sketches": {
        "adapter_type": "full_adapter_xl",
        "channels": [32, 64, 64, 64],
        "downscale_factor": 16,
        "in_channels": 1,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_type_is_exported_and_is_diffusers(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    made = export(saved(tmp_path / "made", **config), tmp_path / "bundle").manifest
    (network,) = made.networks.values()
    assert (made.task, made.betas, made.defaults) == ("control", None, None)
    assert network.difference.relative < 1e-5
    assert network.inputs["condition"].shape[1] == config.get("in_channels", 3)
    found = {
        "light": ["adapter_0_0", "adapter_1_1", "adapter_2_2"],
        "of one level": ["adapter_0_0"],
        "that begins lower": ["adapter_0_1", "adapter_1_2"],
        "of SDXL, for sketches": ["adapter_0_1", "adapter_1_1", "adapter_2_2", "adapter_3_2"],
    }
    assert list(network.outputs) == found[name]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_openvino_computes_the_same(family: str, bundle_of: BundleOf) -> None:
    """It did not where SpaceToDepth and Gather were before the first convolution."""
    bundle = bundle_of(f"{family}-t2i-adapter")
    file, network = bundle.network("t2i_adapter"), bundle.manifest.networks["t2i_adapter"]
    given = feeds.feed(network.inputs)
    want = feeds.expected(file, given)
    got = feeds.computed(file, given, want, "openvino", Options(precision="fp32"))
    assert feeds.distance(got, want) < 1e-5


def test_an_adapter_of_fewer_levels_adds_to_those(
    image: Image.Image, bundle_of: BundleOf, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "made", **CONFIGS["of one level"])
    adapter, kind = T2IAdapter.from_pretrained(folder), StableDiffusionAdapterPipeline
    want = called(kind, checkpoint_of("sd15"), adapter, image)
    path = str(export(folder, tmp_path / "bundle").path)
    assert_equal(ours(bundle_of("sd15"), control={"bundle": path, "image": image}, **RUN), want)


@pytest.mark.parametrize("config", [{"in_channels": 4}, {"downscale_factor": 4}])
def test_one_that_adds_to_no_stable_diffusion_is_refused(
    config: dict[str, int], tmp_path: Path
) -> None:
    folder = saved(tmp_path / "made", channels=[32, 64], **config)
    with pytest.raises(CheckpointError, match=f"T2I-Adapter's {next(iter(config))} is 4; .* takes"):
        export(folder, tmp_path / "bundle")


def test_the_type_tells_the_family_unless_another_is_given(
    checkpoint_of: CheckpointOf,
) -> None:
    for name, family in (("sd15", "sd1"), ("sdxl", "sdxl")):
        read = sources.read(checkpoint_of(f"{name}-t2i-adapter"))
        assert (read.family, read.task) == (family, "control")
        assert recipes.for_checkpoint(read).name == f"{name}-t2i-adapter"
    read = sources.read(checkpoint_of("sd15-t2i-adapter"), family="sd2")
    assert recipes.for_checkpoint(read).name == "sd21-t2i-adapter"
    with pytest.raises(CheckpointError, match="is of family sd1, not sdxl-refiner: it is a full_"):
        sources.read(checkpoint_of("sd15-t2i-adapter"), family="sdxl-refiner")
    with pytest.raises(RecipeError, match="is for a ControlNet, the checkpoint is a T2I-Adapter"):
        recipes.require_fit(recipes.load("sd21-controlnet"), read)


def test_graphs_of_a_controlnet_are_no_adapters(
    checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    adapter, made = bundle_of("sd15-t2i-adapter"), tmp_path / "made"
    again = export(checkpoint_of("sd15-t2i-adapter", 1), made, graph_from=adapter.path)
    assert again.manifest.networks == adapter.manifest.networks
    with pytest.raises(CheckpointError, match="is t2i_adapter, bundle sd15-controlnet controlnet"):
        export(
            checkpoint_of("sd15-t2i-adapter"),
            tmp_path / "other",
            graph_from=bundle_of("sd15-controlnet").path,
        )


@pytest.mark.parametrize(
    ("drawing", "adapter"), [("sd15", "sdxl"), ("sdxl", "sd15"), ("sd21", "sd15")]
)
def test_one_for_other_models_is_refused(
    drawing: str, adapter: str, image: Image.Image, bundle_of: BundleOf
) -> None:
    family = "sdxl" if adapter == "sdxl" else "sd1"
    control = {"bundle": str(bundle_of(f"{adapter}-t2i-adapter").path), "image": image}
    with pytest.raises(InvalidRequest, match=f"is a T2I-Adapter for models of family {family}, or"):
        ours(bundle_of(drawing), control=control, **RUN)


def test_one_of_other_sizes_is_refused(
    image: Image.Image, bundle_of: BundleOf, tmp_path: Path
) -> None:
    """A light one of this family, whose third output is half as large as this U-Net's middle."""
    folder = saved(tmp_path / "made", **CONFIGS["light"])
    control = {"bundle": str(export(folder, tmp_path / "light").path), "image": image}
    with pytest.raises(InvalidRequest, match="or of other sizes than sd15: use one"):
        ours(bundle_of("sd15"), control=control, **RUN)


def test_a_bundle_from_before_there_were_adapters_takes_controlnets_alone(
    image: Image.Image,
    bundle_of: BundleOf,
    checkpoint_of: CheckpointOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as before:
        before.setattr(unet, "places", lambda graph: [])
        old = export(checkpoint_of("sd15"), tmp_path / "sd15")
    control = {"bundle": str(bundle_of("sd15-controlnet").path), "image": image}
    assert_equal(ours(old, control=control, **RUN), ours(bundle_of("sd15"), control=control, **RUN))
    control["bundle"] = str(bundle_of("sd15-t2i-adapter").path)
    with pytest.raises(InvalidRequest, match="takes nothing of T2I-Adapters: export it again"):
        ours(old, control=control, **RUN)
