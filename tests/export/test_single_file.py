"""Single files in the original layout read back to what their folders hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdfast.errors import CheckpointError
from sdfast.export import random_checkpoint, sources
from sdfast.export.components import Checkpoint
from sdfast.export.random_models import single_file

# What no weight tells: a single file takes it from its family.
UNTOLD = {"sample_size", "upcast_attention"}
SD2 = "cond_stage_model.model."

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """family → its folder and, beside it, its single file; written once."""
    place = tmp_path_factory.mktemp("single")

    def folder(family: str) -> Path:
        made = place / family
        if not made.exists():
            random_checkpoint(family, made)
            single_file(made, file_of(made))
        return made

    return folder


def file_of(folder: Path) -> Path:
    return folder.with_suffix(".safetensors")


def vocabulary(folder: Path) -> Path | None:
    places = [folder / name for name in ("tokenizer", "tokenizer_2")]
    return next((place for place in places if place.is_dir()), None)


def changed(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> Path:
    weights = load_file(file_of(folder))
    change(weights)
    file = tmp_path / "changed.safetensors"
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file)
    return file


def assert_equal(ours: Checkpoint, theirs: Checkpoint) -> None:
    assert (ours.family, ours.task, ours.prediction) == (
        theirs.family,
        theirs.task,
        theirs.prediction,
    )
    assert set(ours.components) == set(theirs.components)
    for part, one in ours.components.items():
        other = theirs.components[part]
        assert one.kind == other.kind
        kept = {key: value for key, value in one.config.items() if key not in UNTOLD}
        assert kept == {key: value for key, value in other.config.items() if key not in UNTOLD}
        assert list(one.weights) == list(other.weights)
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    for name, tokenizer in theirs.tokenizers.items():
        for text in ("A red circle, on blue!", "", "word " * 100):
            assert ours.tokenizers[name].encode(text).ids == tokenizer.encode(text).ids


@pytest.mark.parametrize(
    "family",
    [
        "tiny-sd15",
        "tiny-sd21",
        "tiny-sd-turbo",
        "tiny-sdxl",
        "tiny-sdxl-refiner",
        "tiny-lcm",
        "tiny-sd15-inpaint",
        "tiny-instruct-pix2pix",
        "tiny-sd15-controlnet",
    ],
)
def test_a_single_file_equals_its_folder(folders: Folders, family: str) -> None:
    folder = folders(family)
    # A file of SD 2 predicts v by convention; SD-Turbo does not.
    prediction = "epsilon" if family == "tiny-sd-turbo" else None
    theirs = sources.read(folder)
    ours = sources.read(file_of(folder), prediction=prediction, tokenizer=vocabulary(folder))
    assert_equal(ours, theirs)
    for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps"):
        assert ours.scheduler.get(key) == theirs.scheduler.get(key)


@pytest.mark.parametrize(
    ("family", "side"),
    [("tiny-sd15", 64), ("tiny-sd21", 96), ("tiny-sdxl", 128), ("tiny-lcm", 96)],
)
def test_a_single_file_has_the_sizes_its_family_was_trained_on(
    folders: Folders, family: str, side: int
) -> None:
    folder = folders(family)
    components = sources.read(file_of(folder), tokenizer=vocabulary(folder)).components
    assert components["unet"].config["sample_size"] == side
    assert components["vae"].config["sample_size"] == 8 * side


def test_openclips_last_layer_and_projection_are_left_out_for_sd_2(
    folders: Folders, tmp_path: Path
) -> None:
    folder = folders("tiny-sd21")

    def as_trained(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if f"{SD2}transformer.resblocks.1." in name]:
            last = name.replace("resblocks.1.", "resblocks.2.")
            weights[last] = torch.randn_like(weights[name])
        weights[f"{SD2}text_projection"] = torch.randn(128, 128)
        weights[f"{SD2}logit_scale"] = torch.tensor(4.6)
        weights["model_ema.decay"] = torch.tensor(0.9999)

    file = changed(folder, tmp_path, as_trained)
    assert_equal(sources.read(file, tokenizer=vocabulary(folder)), sources.read(folder))


def test_the_global_step_of_sd_2_base_means_epsilon(folders: Folders, tmp_path: Path) -> None:
    folder = folders("tiny-sd21")
    file = changed(folder, tmp_path, lambda w: w.update(global_step=torch.tensor(875_000)))
    read = sources.read(file, tokenizer=vocabulary(folder))
    assert read.prediction == read.scheduler["prediction_type"] == "epsilon"
    assert read.components["unet"].config["sample_size"] == 64


def test_sdxls_markers_mean_v_prediction_and_zero_terminal_snr(
    folders: Folders, tmp_path: Path
) -> None:
    folder = folders("tiny-sdxl")
    marked = changed(
        folder, tmp_path, lambda w: w.update(v_pred=torch.tensor([]), ztsnr=torch.tensor([]))
    )
    read = sources.read(marked, tokenizer=vocabulary(folder))
    assert read.prediction == read.scheduler["prediction_type"] == "v_prediction"
    assert read.scheduler["rescale_betas_zero_snr"] is True
    plain = sources.read(file_of(folder), tokenizer=vocabulary(folder))
    assert plain.prediction == "epsilon"
    assert "rescale_betas_zero_snr" not in plain.scheduler


def test_old_text_encoders_with_position_ids_and_without_prefix_are_read(
    folders: Folders, tmp_path: Path
) -> None:
    folder = folders("tiny-sd15")

    def age(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".text_model." in name]:
            weights[name.replace("text_model.", "")] = weights.pop(name)
        place = "cond_stage_model.transformer.embeddings.position_ids"
        weights[place] = torch.arange(77)[None]

    file = changed(folder, tmp_path, age)
    assert_equal(sources.read(file, tokenizer=vocabulary(folder)), sources.read(folder))


@pytest.mark.parametrize("prefix", ["first_stage_model.", ""])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_vae_alone_is_read_in_either_layout(
    folders: Folders, tmp_path: Path, layout: str, prefix: str
) -> None:
    folder = folders("tiny-sdxl")
    if layout == "original":
        whole = load_file(file_of(folder))
        weights = {
            prefix + name.removeprefix("first_stage_model."): weight
            for name, weight in whole.items()
            if name.startswith("first_stage_model.")
        }
        weights["loss.logvar"] = torch.zeros(1)
    else:
        weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    file = tmp_path / "vae.safetensors"
    save_file(weights, file)
    ours, theirs = sources.read_vae(file, "sdxl"), sources.read_vae(folder / "vae")
    assert ours.config["scaling_factor"] == theirs.config["scaling_factor"] == 0.13025
    assert list(ours.weights) == list(theirs.weights)
    assert all(torch.equal(ours.weights[name], w) for name, w in theirs.weights.items())


def test_a_controlnet_in_diffusers_layout_is_read_from_one_file(folders: Folders) -> None:
    folder = folders("tiny-sd15-controlnet")
    assert_equal(sources.read(folder / "diffusion_pytorch_model.safetensors"), sources.read(folder))


def test_a_pickle_is_read_when_it_is_asked_for(folders: Folders, tmp_path: Path) -> None:
    folder = folders("tiny-sd15")
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(file_of(folder)), "global_step": 1000}, file)
    with pytest.raises(CheckpointError, match=r"model.ckpt is a pickle.*--allow-pickle"):
        sources.read(file, tokenizer=vocabulary(folder))
    read = sources.read(file, tokenizer=vocabulary(folder), allow_pickle=True)
    assert_equal(read, sources.read(folder))


class Payload:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[attr-defined, return-value]


def test_a_pickle_with_code_never_runs_it(tmp_path: Path) -> None:
    payload = Payload()
    payload.path = str(tmp_path / "ran")  # type: ignore[attr-defined]
    torch.save({"state_dict": {"a": payload}}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"holds objects besides tensors"):
        sources.read(tmp_path / "model.ckpt", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def drop(prefix: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith(prefix)]:
            del weights[name]

    return change


def put(name: str, weight: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda weights: weights.update({name: weight})


def only(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights.clear()
        weights[name] = torch.zeros(4, 4)

    return change


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("first_stage_model."), "has no baked-in VAE: pass --vae"),
        (drop("cond_stage_model."), "text_encoder is missing from"),
        (drop(f"{UNET}input_blocks.1.0.in_layers.0.w"), "norm1.weight is missing from"),
        (drop(f"{UNET}input_blocks.1."), "is incomplete"),
        (drop(f"{UNET}out.2."), "conv_out.weight is missing"),
        (put(f"{UNET}extra.weight", torch.ones(3)), f"holds {UNET}extra.weight, which"),
        (put(f"{UNET}out.0.weight", torch.ones(3)), r"conv_norm_out.weight of .* shape \[3\]"),
        (put(f"{UNET}out.0.weight", torch.full((32,), torch.nan)), "out.0.weight of .* NaN"),
        (
            put(f"{UNET}out.0.weight", torch.ones(32, dtype=torch.float8_e4m3fn)),
            "is float8_e4m3fn; weights in float32, float16, bfloat16 are taken",
        ),
        (put("edm_mean", torch.zeros(4)), "EDM formulation"),
        (only("lora_unet_mid.lora_down.weight"), "is a LoRA.*--lora FILE"),
        (only("decoder.conv_in.weight"), "is a VAE.*--vae FILE"),
        (only("transformer.wte"), "holds transformer.wte …, where Stable Diffusion's"),
    ],
)
def test_a_file_that_is_wrong_says_what(
    folders: Folders,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    folder = folders("tiny-sd15")
    file = changed(folder, tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        sources.read(file, tokenizer=vocabulary(folder))
    assert str(file) in str(caught.value)
