"""Merged LoRA files against what diffusers and PEFT fuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdfast.export import lora
from sdfast.export.components import Checkpoint, Component

WEIGHT = 0.8
Tensors = dict[str, torch.Tensor]


def text_config() -> CLIPTextConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 77}
    tokens = {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99}
    return CLIPTextConfig(**sizes, **layers, **tokens)


def component(module: nn.Module) -> Component:
    config = module.config.to_dict() if hasattr(module.config, "to_dict") else module.config
    return Component(type(module).__name__, dict(config), module.state_dict())


def checkpoint(family: str, **modules: nn.Module) -> Checkpoint:
    components = {name: component(module) for name, module in modules.items()}
    return Checkpoint("tiny", family, "text", "epsilon", components, {}, {})


@pytest.fixture(scope="module")
def sd1() -> Checkpoint:
    """SD 1.x at few channels: projections of the transformers are 1 × 1 convolutions."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return checkpoint("sd1", unet=unet, text_encoder=CLIPTextModel(text_config()))


@pytest.fixture(scope="module")
def sdxl() -> Checkpoint:
    """SDXL at few channels: three levels, two text encoders, linear projections."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32,
        attention_head_dim=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=40,
        norm_num_groups=4,
    )
    text = CLIPTextModel(text_config())
    return checkpoint(
        "sdxl",
        unet=unet,
        text_encoder=text,
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
    )


def module(component: Component) -> nn.Module:
    """The component's module with copies of the weights: fusing changes them in place."""
    if component.kind == "UNet2DConditionModel":
        made = UNet2DConditionModel.from_config(dict(component.config))
    else:
        kinds = {kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection)}
        made = kinds[component.kind](CLIPTextConfig(**component.config))
    made.load_state_dict(component.weights)
    return made.eval()


def pipeline(checkpoint: Checkpoint) -> DiffusionPipeline:
    """diffusers' pipeline of copies of the components."""
    parts = {name: module(one) for name, one in checkpoint.components.items()}
    others = {"vae": None, "tokenizer": None, "scheduler": DDIMScheduler()}
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(**parts, **others, tokenizer_2=None)
    safety = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, **others, **safety)


def fused(checkpoint: Checkpoint, file: Path, weight: float = WEIGHT) -> dict[str, Tensors]:
    """diffusers' weights after load_lora_weights and fuse_lora."""
    pipe = pipeline(checkpoint)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    names = list(checkpoint.components)
    pipe.fuse_lora(lora_scale=weight, components=names)
    found = {}
    for name in names:
        state = getattr(pipe, name).state_dict()
        kept = {key: tensor for key, tensor in state.items() if "lora_" not in key}
        found[name] = {key.replace(".base_layer", ""): one for key, one in kept.items()}
    return found


def assert_equal(ours: Checkpoint, theirs: dict[str, Tensors], before: Checkpoint) -> int:
    """All weights equal; returns how many differ from those before, which all others share."""
    changed = 0
    for name, one in ours.components.items():
        assert one.weights.keys() == theirs[name].keys()
        for key, tensor in one.weights.items():
            # Sums of a few products in float32, in another order.
            torch.testing.assert_close(tensor, theirs[name][key], rtol=1e-5, atol=1e-6)
            if tensor is not before.components[name].weights[key]:
                changed += 1
                assert not torch.equal(tensor, before.components[name].weights[key])
    return changed


def pair(weight: torch.Tensor, rank: int, scale: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """A random (down, up) that fits a weight."""
    out, wide, *kernel = weight.shape
    up = torch.randn(out, rank, *(1 for _ in kernel)) * scale
    return torch.randn(rank, wide, *kernel) * scale, up


def layers(checkpoint: Checkpoint, component: str, wanted: tuple[str, ...]) -> Tensors:
    """The weights of a component's layers whose names end in one of the wanted."""
    weights = checkpoint.components[component].weights
    return {
        name.removesuffix(".weight"): weight
        for name, weight in weights.items()
        if name.removesuffix(".weight").endswith(wanted) and name.endswith(".weight")
    }


LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "proj_in", "proj_out", "conv", "time_emb_proj")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def kohya(name: str, weight: torch.Tensor, rank: int, alpha: float | None) -> Tensors:
    down, up = pair(weight, rank)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return tensors if alpha is None else {**tensors, f"{name}.alpha": torch.tensor(alpha)}


def kohya_file(checkpoint: Checkpoint, file: Path) -> Tensors:
    """A file as kohya's tools write it for SD 1.x, in ranks 2 to 4."""
    torch.manual_seed(2)
    tensors: Tensors = {}
    for k, (name, weight) in enumerate(layers(checkpoint, "unet", LINEAR + CONVOLUTIONS).items()):
        tensors |= kohya("lora_unet_" + name.replace(".", "_"), weight, 2 + k % 3, 1.5)
    for name, weight in layers(checkpoint, "text_encoder", TEXT).items():
        tensors |= kohya("lora_te_text_model_" + name.replace(".", "_"), weight, 3, 1.5)
    save_file(tensors, file)
    return tensors


def test_kohyas_file_merges_as_diffusers_fuses_it(sd1: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    tensors = kohya_file(sd1, file)
    ours, report = lora.merge(sd1, file, WEIGHT)
    changed = assert_equal(ours, fused(sd1, file), sd1)
    assert changed == len(report.matched) == len(tensors) // 3
    assert "unet.mid_block.attentions.0.proj_in" in report.matched
    assert report.unmatched == ()
    assert str(report) == f"style.safetensors × 0.8: {changed} layers merged"


STABILITY = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_emb_layers_1": "down_blocks.1.resnets.0.time_emb_proj",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_5_1_proj_in": "down_blocks.1.attentions.1.proj_in",
    "input_blocks_7_1_transformer_blocks_1_attn2_to_k": (
        "down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_k"
    ),
    "middle_block_1_transformer_blocks_0_ff_net_0_proj": (
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    ),
    "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "output_blocks_0_1_transformer_blocks_0_attn1_to_out_0": (
        "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    ),
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_8_0_in_layers_2": "up_blocks.2.resnets.2.conv1",
    "out_2": "conv_out",
}


def test_sdxls_file_in_stabilitys_names_merges_as_diffusers_fuses_it(
    sdxl: Checkpoint, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    tensors: Tensors = {}
    for name, ours in STABILITY.items():
        weight = sdxl.components["unet"].weights[f"{ours}.weight"]
        tensors |= kohya(f"lora_unet_{name}", weight, 2, 1.0)
    for encoder, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        for name, weight in layers(sdxl, encoder, (*TEXT, "text_projection")).items():
            bare = name.removeprefix("text_model.").replace(".", "_")
            model = "" if bare == "text_projection" else "text_model_"
            tensors |= kohya(f"{prefix}{model}{bare}", weight, 2, 1.0)
    file = tmp_path / "xl.safetensors"
    save_file(tensors, file)
    ours, report = lora.merge(sdxl, file, WEIGHT)
    assert {f"unet.{name}" for name in STABILITY.values()} < set(report.matched)
    assert report.unmatched == ()
    assert assert_equal(ours, fused(sdxl, file), sdxl) == len(tensors) // 3


def test_sdxls_file_in_diffusers_names_with_underscores(sdxl: Checkpoint, tmp_path: Path) -> None:
    modules = layers(sdxl, "unet", (*LINEAR, "linear_1", "linear_2", "proj_in"))
    tensors: Tensors = {}
    for name, weight in modules.items():
        tensors |= kohya("lora_unet_" + name.replace(".", "_"), weight, 2, None)
    save_file(tensors, tmp_path / "xl.safetensors")
    _, report = lora.merge(sdxl, tmp_path / "xl.safetensors")
    assert report.matched == tuple(sorted(f"unet.{name}" for name in modules))


def adapters(checkpoint: Checkpoint, **changes: bool) -> dict[str, nn.Module]:
    """The checkpoint's modules with random PEFT adapters, DoRA's lengths too."""
    settings = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_k", "conv1", "proj_in", "q_proj", "fc1"],
        alpha_pattern={"conv1": 3, "^mid_block.attentions.0.proj_in": 5},
        init_lora_weights=False,
        **changes,
    )
    torch.manual_seed(4)
    adapted = {name: module(one) for name, one in checkpoint.components.items()}
    for one in adapted.values():
        one.add_adapter(settings, "default")
        for name, parameter in one.named_parameters():
            if "magnitude" in name:
                parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
    return adapted


def save(adapted: dict[str, nn.Module], folder: Path, with_settings: bool) -> Path:
    """The adapters as diffusers' training scripts save them."""
    metadata = {name: one.peft_config["default"].to_dict() for name, one in adapted.items()}
    states = {
        f"{name}_lora_layers": get_peft_model_state_dict(one, adapter_name="default")
        for name, one in adapted.items()
    }
    settings = {f"{name}_lora_adapter_metadata": one for name, one in metadata.items()}
    StableDiffusionPipeline.save_lora_weights(folder, **states, **settings if with_settings else {})
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("with_settings", [True, False])
@pytest.mark.parametrize("root", [False, True])
def test_pefts_file_merges_as_diffusers_fuses_it(
    sd1: Checkpoint, tmp_path: Path, root: bool, with_settings: bool
) -> None:
    file = save(adapters(sd1, use_rslora=root), tmp_path, with_settings)
    ours, report = lora.merge(sd1, file, WEIGHT)
    assert assert_equal(ours, fused(sd1, file), sd1) == len(report.matched) > 20
    assert report.unmatched == ()


def test_a_dora_merges_as_diffusers_fuses_it(sd1: Checkpoint, tmp_path: Path) -> None:
    adapted = adapters(sd1, use_dora=True)
    file = save(adapted, tmp_path, with_settings=True)
    theirs = fused(sd1, file)
    # transformers 5.23 does not find the text encoder's lengths in the file; PEFT has them here.
    for layer in adapted["text_encoder"].modules():
        if isinstance(layer, BaseTunerLayer):
            layer.scale_layer(WEIGHT)
            layer.merge()
    state = adapted["text_encoder"].state_dict()
    for name in theirs["text_encoder"]:
        layer, _, last = name.rpartition(".")
        theirs["text_encoder"][name] = state.get(f"{layer}.base_layer.{last}", state.get(name))
    ours, report = lora.merge(sd1, file, WEIGHT)
    assert assert_equal(ours, theirs, sd1) == len(report.matched) > 20


def test_older_diffusers_files_merge_as_diffusers_fuses_them(
    sd1: Checkpoint, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    tensors: Tensors = {}
    for name, weight in layers(sd1, "unet", ("to_q", "to_out.0")).items():
        attention, _, last = name.rpartition(".attn")
        number, _, projection = last.partition(".")
        processor = f"{attention}.attn{number}.processor.{projection.removesuffix('.0')}_lora"
        down, up = pair(weight, 2)
        tensors[f"unet.{processor}.down.weight"] = down
        tensors[f"unet.{processor}.up.weight"] = up
    for name, weight in layers(sd1, "text_encoder", ("q_proj", "out_proj")).items():
        old = name.replace("q_proj", "to_q_lora").replace("out_proj", "to_out_lora")
        down, up = pair(weight, 2)
        tensors[f"text_encoder.text_model.{old}.down.weight"] = down
        tensors[f"text_encoder.text_model.{old}.up.weight"] = up
    file = tmp_path / "old.safetensors"
    save_file(tensors, file)
    ours, report = lora.merge(sd1, file, WEIGHT)
    assert report.unmatched == ()
    assert assert_equal(ours, fused(sd1, file), sd1) == len(tensors) // 2
    # save_attn_procs left the network's name out.
    bare = {key.removeprefix("unet."): one for key, one in tensors.items() if key[0] == "u"}
    save_file(bare, file)
    again, _ = lora.merge(sd1, file, WEIGHT)
    for name, weight in ours.components["unet"].weights.items():
        assert torch.equal(again.components["unet"].weights[name], weight)


def test_half_weights_are_rounded_once(sd1: Checkpoint, tmp_path: Path) -> None:
    unet = sd1.components["unet"]
    halves = {name: weight.half() for name, weight in unet.weights.items()}
    half = Component(unet.kind, unet.config, halves)
    made = Checkpoint("tiny", "sd1", "text", "epsilon", {"unet": half}, {}, {})
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = kohya("lora_unet_" + name.replace(".", "_"), halves[f"{name}.weight"], 4, 1.0)
    narrow = {key: tensor.half() for key, tensor in tensors.items()}
    save_file(narrow, tmp_path / "half.safetensors")
    merged = lora.merge(made, tmp_path / "half.safetensors")[0].components["unet"].weights
    down, up, _ = (tensor.double() for tensor in narrow.values())
    exact = halves[f"{name}.weight"].double() + up @ down / 4
    error = (merged[f"{name}.weight"].double() - exact).abs()
    assert merged[f"{name}.weight"].dtype == torch.float16
    # Half a step of float16 is 2⁻¹¹ of the value; float32 adds a little.
    assert (error <= exact.abs() * 2**-11 * 1.001 + 1e-7).all()


def test_several_are_merged_in_turn_and_opposite_weights_cancel(
    sd1: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    kohya_file(sd1, file)
    there, _ = lora.merge(sd1, file, 2.0)
    back, _ = lora.merge(there, file, -2.0)
    for name, one in back.components.items():
        for key, weight in one.weights.items():
            before = sd1.components[name].weights[key]
            torch.testing.assert_close(weight, before, rtol=1e-5, atol=2e-6)


def test_layers_that_the_checkpoint_has_not_are_reported(sd1: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "more.safetensors"
    tensors = kohya_file(sd1, file)
    unknown = kohya("lora_unet_down_blocks_9_conv", torch.zeros(8, 8), 2, 1.0)
    save_file({**tensors, **unknown, "bundle_emb.new.emb_params": torch.zeros(1, 16)}, file)
    _, report = lora.merge(sd1, file)
    assert report.unmatched == ("bundle_emb.new.emb_params", "lora_unet_down_blocks_9_conv")
    assert str(report).endswith(
        "2 unmatched (bundle_emb.new.emb_params, lora_unet_down_blocks_9_conv)"
    )
