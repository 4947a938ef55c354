"""Random checkpoints: published sizes, tiny ones that diffusers loads, activations of order 1."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from sdfast.errors import CheckpointError
from sdfast.export import random_checkpoint, sources
from sdfast.export.components import blueprint
from sdfast.export.random_models import FAMILIES_OF_CHECKPOINTS
from sdfast.export.random_models.sizes import sizes
from sdfast.export.random_models.weights import random_weight

TINY = [name for name in FAMILIES_OF_CHECKPOINTS if name.startswith("tiny-")]
PIPELINES = [name for name in TINY if sizes(name).pipeline is not None]


@pytest.mark.parametrize(
    ("family", "parameters"),
    [  # as published
        ("sd15", {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}),
        ("sd21", {"text_encoder": 340_387_840, "unet": 865_910_724}),
        ("sdxl", {"text_encoder_2": 694_659_840, "unet": 2_567_463_684, "vae": 83_653_863}),
        ("lcm", {"unet": 859_602_884}),
        ("sd15-inpaint", {"unet": 859_535_364}),
        ("instruct-pix2pix", {"unet": 859_532_484}),
        ("sd15-controlnet", {"controlnet": 361_279_120}),
        ("sd15-t2i-adapter", {"t2i_adapter": 77_369_280}),
        ("sdxl-t2i-adapter", {"t2i_adapter": 79_028_160}),
        ("taesd", {"vae": 2_445_063}),
    ],
)
def test_real_checkpoints_have_as_many_parameters_as_the_published_models(
    family: str, parameters: dict[str, int]
) -> None:
    for part, count in parameters.items():
        module = blueprint(*sizes(family).components[part])
        assert sum(weight.numel() for weight in module.parameters()) == count


@pytest.mark.parametrize(
    ("family", "part", "gigabytes"),
    [("sdxl-refiner", "unet", 4.52), ("sdxl-controlnet", "controlnet", 2.50)],
)
def test_large_checkpoints_are_as_large_as_the_published_fp16_files(
    family: str, part: str, gigabytes: float
) -> None:
    module = blueprint(*sizes(family).components[part])
    count = sum(weight.numel() for weight in module.parameters())
    assert 2 * count / 1e9 == pytest.approx(gigabytes, abs=0.01)


def test_every_published_model_has_a_tiny_one() -> None:
    real = [name for name in FAMILIES_OF_CHECKPOINTS if name not in (*TINY, "demo")]
    assert [f"tiny-{name}" for name in real] == TINY


@pytest.mark.parametrize("family", PIPELINES)
def test_diffusers_loads_a_tiny_checkpoint_with_the_weights_that_are_read(
    tmp_path: Path, family: str
) -> None:
    folder = random_checkpoint(family, tmp_path / family)
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(loaded).__name__ == sizes(family).pipeline
    checkpoint = sources.read(folder)
    for part, component in checkpoint.components.items():
        module = getattr(loaded, part)
        theirs = module.state_dict()
        assert list(theirs) == list(component.weights)
        assert all(torch.equal(theirs[name], w) for name, w in component.weights.items())
        ours = component.module().state_dict()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
        known = module.config if part in ("unet", "vae") else module.config.to_dict()
        assert {key: known[key] for key in component.config} == dict(component.config)
        with torch.no_grad():
            if part.startswith("text_encoder"):
                tokens = torch.tensor([[998, 5, 6, *[999] * 74]])
                one, other = module(tokens), component.module()(tokens)
                assert torch.equal(one.last_hidden_state, other.last_hidden_state)
    for name, tokenizer in checkpoint.tokenizers.items():
        texts = ["A red  circle on a blue background, with 3 dots", "", "word " * 100]
        theirs = getattr(loaded, name)(
            texts, padding="max_length", max_length=77, truncation=True
        ).input_ids
        assert [encoding.ids for encoding in tokenizer.encode_batch(texts)] == theirs


def peaks_of(module: torch.nn.Module) -> list[float]:
    """Is filled with the largest magnitudes of all layers' outputs as the module runs."""
    peaks: list[float] = []

    def note(_: torch.nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            peaks.append(float(output.abs().max()))

    for inner in module.modules():
        inner.register_forward_hook(note)
    return peaks


@pytest.mark.parametrize("family", ["tiny-sd15", "tiny-sdxl"])
def test_activations_are_of_order_1(tmp_path: Path, family: str) -> None:
    checkpoint = sources.read(random_checkpoint(family, tmp_path / family))
    draw = torch.Generator().manual_seed(0)
    for part, component in checkpoint.components.items():
        module = component.module()
        peaks = peaks_of(module)
        with torch.no_grad():
            if part.startswith("text_encoder"):
                tokens = torch.randint(0, 1000, (2, 77), generator=draw)
                output = module(tokens).last_hidden_state
            elif part == "vae":
                output = module.decode(torch.randn(1, 4, 8, 8, generator=draw)).sample
            else:
                output = module(
                    torch.randn(1, 4, 16, 16, generator=draw),
                    500,
                    torch.randn(1, 77, component.config["cross_attention_dim"], generator=draw),
                    added_cond_kwargs={
                        "text_embeds": torch.randn(1, 96, generator=draw),
                        "time_ids": torch.full((1, 6), 128.0),
                    },
                ).sample
        assert 0.3 < float(output.std()) < 3
        assert max(peaks) < 50  # three orders of magnitude below what fp16 holds


def test_a_controlnet_adds_something(tmp_path: Path) -> None:
    folder = random_checkpoint("tiny-sd15-controlnet", tmp_path / "control")
    module = sources.read(folder).components["controlnet"].module()
    draw = torch.Generator().manual_seed(0)
    inputs = (torch.randn(1, 4, 16, 16, generator=draw), 500)
    context = torch.randn(1, 77, 64, generator=draw)
    with torch.no_grad():
        hints = [module(*inputs, context, torch.full((1, 3, 128, 128), v)) for v in (0.0, 1.0)]
    for black, white in zip(
        (*hints[0].down_block_res_samples, hints[0].mid_block_res_sample),
        (*hints[1].down_block_res_samples, hints[1].mid_block_res_sample),
        strict=True,
    ):
        assert 0.05 < float(black.std()) < 3
        assert float((black - white).abs().max()) > 1e-3


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    files = [
        random_checkpoint("tiny-taesd", tmp_path / str(k), seed) for k, seed in enumerate([1, 1, 2])
    ]
    one, same, other = (load_file(f / "diffusion_pytorch_model.safetensors") for f in files)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_weights_of_equal_shapes_differ_by_name() -> None:
    like = torch.empty(8, 8, device="meta")
    assert not torch.equal(random_weight("unet/a", like, 0), random_weight("unet/b", like, 0))


def test_random_checkpoint_can_be_called_again_by_its_public_name(tmp_path: Path) -> None:
    import sdfast.export

    for k in range(2):
        assert sdfast.export.random_checkpoint("tiny-taesd", tmp_path / str(k)).is_dir()


def test_an_unknown_family_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"did you mean 'tiny-sdxl'.*known: demo, sd15"):
        random_checkpoint("tiny-sdlx", tmp_path / "no")
    assert not list(tmp_path.iterdir())
