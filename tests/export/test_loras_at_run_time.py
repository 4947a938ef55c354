"""LoRA on exported bundles, without another export, beside diffusers' load_lora_weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lora_files
import numpy as np
import pytest
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from sdfast import backends, graph_weights, safetensors
from sdfast.backends import Options
from sdfast.bundle import Bundle
from sdfast.export import export
from sdfast.export.verify import psnr
from sdfast.floats import BFLOAT16, rounded
from sdfast.loras import Lora
from sdfast.loras.applied import NETWORKS, applied
from sdfast.pipeline import Pipeline
from sdfast.plans.host import CpuPlans
from sdfast.variants import Variant

from .conftest import BundleOf, CheckpointOf
from .pictures import PROMPT, SEED, opened, start, theirs

NEGATIVE, STEPS, SIDE = "a large red circle", 3, 128


def ours(bundle: Bundle, *loras: Lora, backend: str = "onnxruntime") -> np.ndarray:
    pipeline = Pipeline(bundle, backend, Options(threads=1, precision="fp32"))
    if loras:
        with_loras = pipeline._opened.with_loras(applied(bundle, loras))
        pipeline._variants.plain = Variant(with_loras, CpuPlans(with_loras, None))
    sizes = {"width": SIDE, "height": SIDE}
    given = {"sampler": "euler", "schedule": "leading", "steps": STEPS, "guidance": 6.0, **sizes}
    result = pipeline(PROMPT, negative_prompt=NEGATIVE, seed=SEED, rng="torch", **given)
    return np.asarray(result.images[0])


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sd15", StableDiffusionPipeline),
        ("sd21", StableDiffusionPipeline),
        ("sdxl", StableDiffusionXLPipeline),
    ],
)
def test_pictures_are_those_of_diffusers(
    family: str, kind: Any, checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    checkpoint, bundle = checkpoint_of(family), bundle_of(family)
    ink = lora_files.write(tmp_path / "ink.safetensors", checkpoint, 1)
    fog = lora_files.write(tmp_path / "fog.safetensors", checkpoint, 2, components=("unet",))
    pipe = opened(kind, checkpoint)
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading"
    )
    for file in (ink, fog):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=file.stem)
    pipe.set_adapters(["ink", "fog"], [0.8, -0.5])
    want = theirs(
        pipe,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=6.0,
        width=SIDE,
        height=SIDE,
        **start(pipe.scheduler, STEPS, SIDE, SIDE),
    ).image
    found = ours(bundle, Lora(ink, 0.8), Lora(fog, -0.5))
    assert psnr(found, want) >= 40
    assert psnr(ours(bundle), want) < 30


@pytest.fixture(scope="module")
def in_bf16(checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("bf16") / "sd15"
    return export(checkpoint_of("sd15"), place, precision="bf16")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_matrices_that_lie_as_the_graph_reads_them_are_replaced_too(
    backend: str, checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    checkpoint, bundle = checkpoint_of("sd15"), bundle_of("sd15")
    if reason := backends.usable()[backend]:
        pytest.skip(reason)
    ink = Lora(lora_files.write(tmp_path / "ink.safetensors", checkpoint, 1), 0.8)
    merged = export(
        checkpoint, tmp_path / "merged", loras=[(ink.file, ink.weight)], graph_from=bundle.path
    )
    assert np.array_equal(ours(bundle, ink, backend=backend), ours(merged, backend=backend))


def test_bfloat16_is_replaced_by_bfloat16(
    in_bf16: Bundle, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    if reason := backends.usable()["openvino"]:
        pytest.skip(reason)
    checkpoint = checkpoint_of("sd15")
    ink = Lora(lora_files.write(tmp_path / "ink.safetensors", checkpoint, 1), 0.8)
    merged = export(
        checkpoint, tmp_path / "merged", loras=[(ink.file, ink.weight)], graph_from=in_bf16.path
    )
    found, want = (ours(in_bf16, ink, backend="openvino"), ours(merged, backend="openvino"))
    # W is rounded to bfloat16 before and after the addition: half a step of its 8 bits more.
    assert psnr(found, want) >= 35
    assert psnr(ours(in_bf16, backend="openvino"), want) < 30


@pytest.mark.parametrize("family", ["sd15", "sdxl", "bf16"])
def test_graphs_tell_what_their_matrices_are_of(
    family: str, in_bf16: Bundle, checkpoint_of: CheckpointOf, bundle_of: BundleOf
) -> None:
    half = family == "bf16"
    checkpoint = checkpoint_of("sd15" if half else family)
    bundle = in_bf16 if half else bundle_of(family)
    turned = fused = 0
    for network, component in NETWORKS.items():
        if network not in bundle.manifest.networks:
            continue
        (file,) = (checkpoint / component).glob("*.safetensors")
        tensors = {_bare(name): tensor for name, tensor in safetensors.read(file)[0].items()}
        weights = graph_weights.read(bundle.network(network).read_bytes())
        matrices = [weight for weight in weights if len(weight.shape) > 1]
        assert matrices
        for weight in matrices:
            parts = [tensors[_bare(rows.part)][rows.first : rows.end] for rows in weight.rows]
            whole = np.concatenate(parts)
            whole = whole.T if weight.turned else whole
            stored = weight.values(bundle.path)
            assert stored.dtype in ((BFLOAT16, np.float32) if half else (np.float32,))
            assert np.array_equal(stored, rounded(whole, stored.dtype))
            turned, fused = turned + weight.turned, fused + (len(parts) > 1)
    assert turned > 10
    assert fused > 5


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")
