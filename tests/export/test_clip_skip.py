"""Contexts with the last layers left out, beside those of diffusers' pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from sdfast.backends import Options, open_engine
from sdfast.composition import script
from sdfast.conditioning import Conditions, TextEncoder, load_tokenizer
from sdfast.errors import InvalidRequest
from sdfast.opened import Opened

from .conftest import BundleOf, CheckpointOf
from .pictures import PROMPT, opened


@pytest.mark.parametrize(
    ("family", "kind", "most"),
    [
        ("sd15", StableDiffusionPipeline, 2),
        ("sd21", StableDiffusionPipeline, 2),
        ("sdxl", StableDiffusionXLPipeline, 1),  # its first text encoder has two layers here
    ],
)
def test_clip_skip_is_that_of_diffusers(
    family: str, kind: Any, most: int, checkpoint_of: CheckpointOf, bundle_of: BundleOf
) -> None:
    bundle, pipe = bundle_of(family), opened(kind, checkpoint_of(family))
    inputs = Opened(bundle, "onnxruntime", Options()).inputs("time_projection", "unet")
    encoders = [
        TextEncoder(
            open_engine(bundle.network(name), "onnxruntime"),
            load_tokenizer(bundle.path / tokenizer.file),
            bundle.context.tokens,
        )
        for name, tokenizer in sorted(bundle.manifest.tokenizers.items())
    ]
    inputs["context"] = bundle.manifest.networks["context_projection"].inputs["context"]
    made = Conditions(encoders, None, inputs, bundle.context)
    said = script(PROMPT, None, 1)
    if not hasattr(pipe.text_encoder, "text_model"):  # diffusers asks, transformers 5 has none
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    seen = []
    for skipped in range(most + 1):
        made.read(said, skipped)
        tensors = {name: inputs[name].empty(1, 77) for name in {"context", "pooled"} & set(inputs)}
        made.fill(tensors, 1, 1)
        with torch.no_grad():
            given = {"prompt": PROMPT, "device": "cpu", "num_images_per_prompt": 1}
            given["do_classifier_free_guidance"] = False
            context, _, *pooled = pipe.encode_prompt(**given, clip_skip=skipped or None)
        scale = context.abs().max().item()
        np.testing.assert_allclose(np.array(tensors["context"]), context, atol=1e-5 * scale)
        if pooled:
            np.testing.assert_allclose(np.array(tensors["pooled"]), pooled[0], atol=1e-5)
        seen.append(np.array(tensors["context"]))
    assert np.abs(seen[0] - seen[1]).max() > 0.01
    with pytest.raises(InvalidRequest, match=f"must be from 0 to {most}"):
        made.read(said, most + 1)
