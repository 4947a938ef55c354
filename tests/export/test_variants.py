"""What is merged into a checkpoint, taken from elsewhere or stored otherwise: the bundle draws what
diffusers draws with the same, or what another bundle draws."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from sdfast.errors import VerificationError
from sdfast.export import export, precision, recipes, verify
from sdfast.export.random_models import single_file
from sdfast.export.recipes import Recipe
from sdfast.export.verify import psnr

from .conftest import BundleOf, CheckpointOf
from .loops import Networks
from .pictures import PROMPT, Drawn, assert_equal, opened, ours, start, theirs

KINDS = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
STEPS, SIDE = 2, 128
RUN = {"steps": STEPS, "sampler": "euler", "schedule": "leading", "guidance": 5.0}


def drawn_by(pipe: Any, prompt: str = PROMPT) -> Drawn:
    """diffusers' picture of the request RUN."""
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading"
    )
    begun = start(pipe.scheduler, STEPS, SIDE, SIDE)
    return theirs(pipe, prompt=prompt, num_inference_steps=STEPS, guidance_scale=5.0, **begun)


def assert_other(one: Drawn, other: Drawn) -> None:
    """What was changed is seen."""
    assert psnr(one.image, other.image) < 35


def low_rank(pipe: Any, file: Path, names: list[str], kohya: bool) -> Path:
    """A file of random matrices of rank 4 for the attentions of these components."""
    state = {}
    for seed, name in enumerate(names):
        attentions = ["to_q", "to_k", "to_v", "to_out.0"]
        modules = attentions if name == "unet" else ["q_proj", "k_proj", "v_proj", "out_proj"]
        module = getattr(pipe, name)
        torch.manual_seed(seed)
        module.add_adapter(
            LoraConfig(r=4, lora_alpha=4, target_modules=modules, init_lora_weights=False)
        )
        found = get_peft_model_state_dict(module)
        state |= {f"{name}.{key}": tensor for key, tensor in found.items()}
    if kohya:
        state = convert_state_dict_to_kohya(state)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
    return file


@pytest.mark.parametrize(
    ("family", "encoders", "kohya"),
    [("sd15", ["text_encoder"], False), ("sdxl", ["text_encoder", "text_encoder_2"], True)],
)
def test_a_merged_lora_draws_what_diffusers_draws_fused(
    family: str,
    encoders: list[str],
    kohya: bool,
    checkpoint_of: CheckpointOf,
    bundle_of: BundleOf,
    tmp_path: Path,
) -> None:
    folder, plain = checkpoint_of(family), bundle_of(family)
    file = tmp_path / "style.safetensors"
    low_rank(opened(KINDS[family], folder), file, ["unet", *encoders], kohya)
    made = export(folder, tmp_path / "made", loras=[(file, 0.8)], graph_from=plain.path)
    layers = sum(name.endswith(("lora_A.weight", "lora_down.weight")) for name in load_file(file))
    assert made.manifest.notes[0] == f"LoRA style.safetensors × 0.8: {layers} layers merged"  # all
    pipe = opened(KINDS[family], folder)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    pipe.fuse_lora(lora_scale=0.8, components=["unet", *encoders])
    got = ours(made, **RUN)
    assert_equal(got, drawn_by(pipe))
    assert_other(got, ours(plain, **RUN))


def test_an_embedding_draws_what_diffusers_draws_with_it(
    checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    folder, file = checkpoint_of("sd15"), tmp_path / "toy.safetensors"
    vectors = 4 * torch.randn(2, 64, generator=torch.Generator().manual_seed(5))
    save_file({"<toy>": vectors}, file)
    made = export(folder, tmp_path / "made", embeddings=[file])
    pipe = opened(StableDiffusionPipeline, folder)
    pipe.load_textual_inversion(file.parent, weight_name=file.name, token="<toy>")
    prompt = "a small <toy> on a blue background"
    got = ours(made, prompt, **RUN)
    assert_equal(got, drawn_by(pipe, prompt))
    assert_other(got, ours(made, "a small on a blue background", **RUN))


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "sdxl-refiner"])
def test_a_single_file_becomes_its_folders_bundle(
    family: str, checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    folder, whole = checkpoint_of(family), bundle_of(family)
    file = single_file(folder, tmp_path / "model.safetensors")
    words = folder / ("tokenizer_2" if family == "sdxl-refiner" else "tokenizer")
    made = export(file, tmp_path / "made", tokenizer=words, graph_from=whole.path)
    assert made.manifest.files == whole.manifest.files  # byte for byte
    for said in ("family", "task", "prediction", "latent_scale", "betas", "context"):
        assert getattr(made.manifest, said) == getattr(whole.manifest, said), said


def test_a_file_of_half_precision_draws_what_diffusers_draws_with_it(
    checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint_of("sd15"), tmp_path / "half"))
    for file in folder.glob("*/*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halved, file.with_suffix(".fp16.safetensors"))
        file.unlink()
    plain = bundle_of("sd15")
    made = export(folder, tmp_path / "made", graph_from=plain.path)
    assert made.manifest.files != plain.manifest.files
    assert_equal(ours(made, **RUN), drawn_by(opened(KINDS["sd15"], folder, variant="fp16")))


def test_another_vae_draws_as_in_diffusers(
    checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    folder, other = checkpoint_of("sd15"), checkpoint_of("sd15", 1) / "vae"
    plain = bundle_of("sd15")
    made = export(folder, tmp_path / "made", vae=other, graph_from=plain.path)
    got, decoder = ours(made, **RUN), AutoencoderKL.from_pretrained(other)
    assert_equal(got, drawn_by(opened(KINDS["sd15"], folder, vae=decoder)))
    assert_other(got, ours(plain, **RUN))


def test_tiny_autoencoders_decode_as_in_diffusers(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    folder, tiny, other = checkpoint_of("sd15"), checkpoint_of("taesd"), checkpoint_of("taesd", 1)
    made = export(folder, tmp_path / "made", vae=tiny, preview=other)
    pipe = opened(KINDS["sd15"], folder, vae=AutoencoderTiny.from_pretrained(tiny))
    got = ours(made, **RUN)
    assert_equal(got, drawn_by(pipe))
    preview = Networks(made)("preview_decoder", {"latent": got.latents})["image"][0]
    with torch.no_grad():
        decoded = AutoencoderTiny.from_pretrained(other).decode(torch.from_numpy(got.latents))
    (expected,) = pipe.image_processor.postprocess(decoded.sample, "pil")
    assert psnr(preview, np.asarray(expected)) >= 40
    assert_other(got, Drawn(got.latents, preview))


def test_a_linked_bundle_has_no_copy_of_the_weights(
    checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint_of("sd15"), tmp_path / "checkpoint"))
    made = export(folder, tmp_path / "made", link=True)
    stored = list(made.path.glob("*.safetensors"))
    theirs = {file.stat().st_ino: file.stat().st_size for file in folder.glob("*/*.safetensors")}
    linked = [file for file in stored if file.stat().st_ino in theirs]
    assert len(linked) == len(theirs) == 3
    own = [file for file in made.path.rglob("*") if file.is_file() and file not in linked]
    assert not [file for file in own if file.suffix == ".safetensors"]
    assert_equal(ours(made, **RUN), ours(bundle_of("sd15"), **RUN), 1e-5)


def test_a_fine_tune_takes_the_graphs_and_differs_in_weights_alone(
    checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    plain, tuned = bundle_of("sd15"), checkpoint_of("sd15", 1)
    made = export(tuned, tmp_path / "made", graph_from=plain.path)
    whole = export(tuned, tmp_path / "whole")
    before, after = plain.manifest.files, made.manifest.files
    differ = {name for name in after if after[name] != before.get(name)}
    assert differ == {name for name in before if name.endswith(".safetensors")}
    assert after == whole.manifest.files
    got = ours(made, **RUN)
    assert np.array_equal(got.image, ours(whole, **RUN).image)
    assert_other(got, ours(plain, **RUN))


def without_adapters(name: str) -> Recipe:
    """A recipe but for the U-Net's second form, which draws nothing here."""
    recipe = recipes.load(name)
    return replace(recipe, networks=tuple(n for n in recipe.networks if n != "unet_adapters"))


@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_half_precision_draws_nearly_the_same(
    family: str, checkpoint_of: CheckpointOf, bundle_of: BundleOf, tmp_path: Path
) -> None:
    half = export(
        checkpoint_of(family),
        tmp_path / "half",
        recipe=without_adapters(family),
        precision="fp16",
    )
    assert {network.precision for network in half.manifest.networks.values()} == {"fp16"}
    assert psnr(ours(half, **RUN).image, ours(bundle_of(family), **RUN).image) >= 35


SCALE = 1e5  # brings values of order 1 beyond 65504, the end of float16


@pytest.fixture
def loud(checkpoint_of: CheckpointOf, tmp_path: Path) -> Path:
    """tiny-sd15 with a VAE that is SCALE times as loud over one level of its decoder: what it
    draws is the same."""
    folder = Path(shutil.copytree(checkpoint_of("sd15"), tmp_path / "loud"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    louder = (
        "decoder.up_blocks.0.upsamplers.0.conv.",
        "decoder.up_blocks.1.resnets.0.conv2.",
        "decoder.up_blocks.1.resnets.1.conv2.",
    )
    for name in tensors:
        if name.startswith(louder):
            tensors[name] *= SCALE
    tensors["decoder.up_blocks.1.upsamplers.0.conv.weight"] /= SCALE
    save_file(tensors, file)
    return folder


def test_layers_that_float16_cannot_hold_stay_in_float32(
    loud: Path, bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = without_adapters("sd15")
    recipe = replace(recipe, precision={**recipe.precision, "vae_decoder": "fp16"})
    made = export(loud, tmp_path / "made", recipe=recipe)
    decoder = made.manifest.networks["vae_decoder"]
    assert decoder.kept[0].startswith("decoder.up_blocks.0.upsamplers.0.conv")
    assert "decoder.up_blocks.1.resnets.1" in decoder.kept
    assert not any(name.startswith("decoder.up_blocks.2") for name in decoder.kept)
    want, got = ours(bundle_of("sd15"), **RUN), ours(made, **RUN)
    assert psnr(got.image, want.image) >= 35
    # As devices with float16 compute it, which this machine's runtime does not: rounded.
    rounded = verify.opened(made.network("vae_decoder"), "fp16")({"latent": got.latents})
    assert psnr(rounded["image"][0], want.image) >= 35
    monkeypatch.setattr(precision, "HEADROOM", 0.0)  # nothing is kept
    with pytest.raises(VerificationError, match=r"vae_decoder.*decoder\.up_blocks\.0\.upsamplers"):
        export(loud, tmp_path / "lost", recipe=recipe)
    assert not (tmp_path / "lost").exists()


@pytest.mark.slow
def test_networks_of_several_precisions_and_a_preview_export_together(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    recipe = recipes.load("sdxl", "tensorrt")  # fp16, but for its VAE in bf16
    preview = checkpoint_of("taesdxl")
    made = export(checkpoint_of("sdxl"), tmp_path / "made", recipe=recipe, preview=preview)
    found = {name: network.precision for name, network in made.manifest.networks.items()}
    assert found["unet"] == found["preview_decoder"] == "fp16"
    assert found["vae_decoder"] == "bf16"
    # No runtime here draws in bf16, yet the calibration of what is fp16 saw real prompts.
    assert not any("picture" in note for note in made.manifest.notes)
    assert (made.path / "magnitudes.json").is_file()
