"""The networks of a bundle as torch modules, and their ONNX graphs.

Names, types and layouts are those that the runtime binds (docs/design.md): image post-processing
is inside the decoder's graph, pre-processing inside the encoder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from .checkpoint import Checkpoint

OPSET = 23  # the first with Attention


class TextEncoder(nn.Module):
    """tokens i32 [B, 77] → context f32 [B, 77, C]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(tokens.long(), return_dict=False)[0]  # type: ignore[no-any-return]


class UNet(nn.Module):
    """latent f32 [B, 4, h, w], timestep f32 [B], context f32 [B, n, C] → noise f32 [B, 4, h, w]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return self.inner(latent, timestep, context, return_dict=False)[0]  # type: ignore[no-any-return]


class VaeDecoder(nn.Module):
    """latent f32 [B, 4, h, w] → image u8 [B, 8h, 8w, 3]."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, latent: Tensor) -> Tensor:
        image = self.inner.decode(latent / self.scale, return_dict=False)[0]  # type: ignore[operator]
        pixels = (image / 2 + 0.5).clamp(0, 1) * 255
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class VaeEncoder(nn.Module):
    """image u8 [B, 8h, 8w, 3] → mean, logvar f32 [B, 4, h, w], not scaled."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = image.permute(0, 3, 1, 2).float() / 127.5 - 1
        moments = self.inner.quant_conv(self.inner.encoder(pixels))  # type: ignore[operator]
        mean, logvar = moments.chunk(2, 1)
        return mean, logvar.clamp(-30, 20)


@dataclass(frozen=True)
class Source:
    """A network to export: its module, where its weights have their names, inputs to trace with,
    which axes vary, and the outputs' names."""

    module: nn.Module
    weights: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]


def sources(checkpoint: Checkpoint) -> dict[str, Source]:
    """Every network of the bundle."""
    config = checkpoint.unet.config
    channels, tokens = config.in_channels, checkpoint.text_encoder.config.max_position_embeddings
    multiple = downsampling(checkpoint.unet)
    scale = image_scale(checkpoint.vae)
    side = 2 * multiple
    batch, rows = Dim("batch", min=1, max=64), Dim("rows", min=1, max=4096)
    # The U-Net halves its latent several times: both sides are multiples of that.
    sides = {2: multiple * Dim("h", min=1, max=1024), 3: multiple * Dim("w", min=1, max=1024)}
    free = {2: Dim("height", min=1, max=4096), 3: Dim("width", min=1, max=4096)}
    pixels = {1: scale * Dim("h", min=1, max=4096), 2: scale * Dim("w", min=1, max=4096)}
    latent = torch.randn(2, channels, side, side)
    context = torch.randn(2, tokens, config.cross_attention_dim)
    vocabulary = checkpoint.text_encoder.config.vocab_size
    vae = checkpoint.vae
    return {
        "text_encoder": Source(
            TextEncoder(checkpoint.text_encoder),
            checkpoint.text_encoder,
            {"tokens": torch.randint(0, vocabulary, (2, tokens), dtype=torch.int32)},
            {"tokens": {0: batch}},
            ("context",),
        ),
        "unet": Source(
            UNet(checkpoint.unet),
            checkpoint.unet,
            {"latent": latent, "timestep": torch.tensor([999.0, 1.5]), "context": context},
            {"latent": {0: batch, **sides}, "timestep": {0: batch}, "context": {0: batch, 1: rows}},
            ("noise",),
        ),
        "vae_decoder": Source(
            VaeDecoder(vae, vae.config.scaling_factor),
            vae,
            {"latent": torch.randn(2, channels, side, side + 1)},
            {"latent": {0: batch, **free}},
            ("image",),
        ),
        "vae_encoder": Source(
            VaeEncoder(vae),
            vae,
            {"image": torch.randint(0, 256, (2, 2 * scale, 3 * scale, 3), dtype=torch.uint8)},
            {"image": {0: batch, **pixels}},
            ("mean", "logvar"),
        ),
    }


def downsampling(unet: nn.Module) -> int:
    """How many latents a side of the U-Net's lowest level is apart."""
    return int(2 ** (len(unet.config.block_out_channels) - 1))  # type: ignore[union-attr,arg-type]


def image_scale(vae: nn.Module) -> int:
    """Pixels a side of one latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))  # type: ignore[union-attr,arg-type]


def trace(source: Source) -> onnx.ModelProto:
    """The network's graph with its weights inside, without the tracer's notes on every node."""
    program = torch.onnx.export(
        source.module,
        tuple(source.inputs.values()),
        input_names=list(source.inputs),
        output_names=list(source.outputs),
        dynamic_shapes=tuple(source.dynamic.get(name) for name in source.inputs),
        opset_version=OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    del model.functions[:], model.metadata_props[:]
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.metadata_props[:], graph.value_info[:]
    model.producer_name, model.producer_version, graph.name = "sdfast", "", "network"
    return model


def example(source: Source, batch: int, larger: bool, seed: int) -> Mapping[str, Tensor]:
    """Fresh random inputs at another batch and, if `larger`, other sides where they vary."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, traced in source.inputs.items():
        axes = source.dynamic[name]
        grown = larger and name != "context"
        shape = [
            batch if k == 0 else side * 2 if k in axes and grown else side
            for k, side in enumerate(traced.shape)
        ]
        if name == "timestep":
            made[name] = torch.rand(shape, generator=generator) * 999
        elif traced.dtype is torch.float32:
            made[name] = torch.randn(shape, generator=generator)
        else:
            high = int(traced.max()) + 1
            made[name] = torch.randint(0, high, shape, generator=generator, dtype=traced.dtype)
    return made
