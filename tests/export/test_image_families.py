"""Families that are given pictures: inpainting, editing, ControlNet, IP-Adapter. Loops over the
bundle's networks end in the latents and pictures of diffusers' pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from PIL import Image

from sdfast import schedules
from sdfast.bundle import Bundle, noise_schedule
from sdfast.export.graph import Graph
from sdfast.export.networks.conditions import cross_attentions
from sdfast.export.verify import psnr

from .conftest import BundleOf, CheckpointOf
from .loops import Arrays, Networks, repeated
from .pictures import PROMPT, SEED, Drawn, assert_equal, opened, start, theirs

NEGATIVE = "a large red circle"
STEPS, GUIDANCE = 3, 5.0
SIDE = 128


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """u8 [128, 128, 3], soft noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def euler(pipe: Any) -> dict[str, Any]:
    """Gives the pipeline Euler's method; returns what its run begins with."""
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading"
    )
    return start(pipe.scheduler, STEPS, SIDE, SIDE)


def levels(bundle: Bundle) -> tuple[float, ...]:
    return schedules.sigmas("leading", STEPS, noise_schedule(bundle.betas))


def begin(bundle: Bundle, generator: torch.Generator) -> NDArray[np.float32]:
    """Where a run begins: the generator's first draw at the first noise level."""
    drawn = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=generator).numpy()
    return drawn * (levels(bundle)[0] ** 2 + 1) ** 0.5


def free(answers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Classifier-free guidance of the two rows guided, unguided."""
    return answers[1:] + GUIDANCE * (answers[:1] - answers[1:])


def inpainted(run: Networks, masked: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Drawn:
    """Fills the mask [h, w] of a picture: nine channels of latent, mask and masked picture."""
    generator = torch.Generator().manual_seed(SEED)
    x = begin(run.bundle, generator)
    mean, logvar = run.encode(masked)
    drawn = torch.randn(mean.shape, generator=generator).numpy()
    kept = (mean + np.exp(logvar / 2) * drawn) * run.bundle.manifest.latent_scale
    conditions = run.conditions([PROMPT, NEGATIVE], SIDE, SIDE)

    def guided(latent: NDArray[Any], t: float) -> NDArray[Any]:
        whole = np.concatenate([latent, mask[None, None].astype(np.float32), kept], axis=1)
        return free(run.noise(conditions | repeated(whole, t, 2)))

    return run.draw(x, levels(run.bundle), guided)


def test_inpainting_fills_the_mask_as_diffusers_does(
    image: NDArray[np.uint8], checkpoint_of: CheckpointOf, bundle_of: BundleOf
) -> None:
    run = Networks(bundle_of("sd15-inpaint"))
    pipe = opened(StableDiffusionInpaintPipeline, checkpoint_of("sd15-inpaint"))
    where = np.zeros((SIDE, SIDE), bool)
    where[24:88, 40:120] = True
    grey = np.where(where[..., None], np.uint8(128), image)
    got = inpainted(run, grey, where[::8, ::8])
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "strength": 1.0}
    call |= {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    call |= {"image": Image.fromarray(image), "mask_image": Image.fromarray(where)}
    call |= {"height": SIDE, "width": SIDE}
    # diffusers' grey is 127.5, which no pixel of 8 bits is: the latents are near, and with the
    # masked picture as it is here they are the same.
    assert_equal(got, theirs(pipe, **call, **euler(pipe)), 1e-3)
    signed = torch.from_numpy(grey).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert_equal(got, theirs(pipe, **call, **euler(pipe), masked_image_latents=signed))


def test_instructions_edit_a_picture_as_diffusers_does(
    image: NDArray[np.uint8], checkpoint_of: CheckpointOf, bundle_of: BundleOf
) -> None:
    run = Networks(bundle_of("instruct-pix2pix"))
    pipe = opened(StableDiffusionInstructPix2PixPipeline, checkpoint_of("instruct-pix2pix"))
    begun = euler(pipe)
    want = theirs(
        pipe,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        image=Image.fromarray(image),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        image_guidance_scale=1.8,
        **begun,
    )
    conditions = run.conditions([PROMPT, NEGATIVE, NEGATIVE], SIDE, SIDE)
    mean, _ = run.encode(image)
    edited = np.concatenate([mean, mean, np.zeros_like(mean)])

    def guided(latent: NDArray[Any], t: float) -> NDArray[Any]:
        rows = repeated(latent, t, 3)
        rows["latent"] = np.concatenate([rows["latent"], edited], axis=1)
        told, seen, neither = np.split(run.noise(conditions | rows), 3)
        return neither + GUIDANCE * (told - seen) + 1.8 * (seen - neither)

    x = begin(run.bundle, torch.Generator().manual_seed(SEED))
    assert_equal(run.draw(x, levels(run.bundle), guided), want)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sd15", StableDiffusionControlNetPipeline),
        ("sdxl", StableDiffusionXLControlNetPipeline),
    ],
)
def test_controlnet_steers_as_in_diffusers(
    family: str,
    kind: Any,
    image: NDArray[np.uint8],
    checkpoint_of: CheckpointOf,
    bundle_of: BundleOf,
) -> None:
    run, control = Networks(bundle_of(family)), Networks(bundle_of(f"{family}-controlnet"))
    steering = ControlNetModel.from_pretrained(checkpoint_of(f"{family}-controlnet"))
    pipe = opened(kind, checkpoint_of(family), controlnet=steering)
    begun = euler(pipe)
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "image": Image.fromarray(image)}
    call |= {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    want = theirs(pipe, **call, **begun, controlnet_conditioning_scale=0.7)
    condition = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    conditions = run.conditions([PROMPT, NEGATIVE], SIDE, SIDE)
    conditions |= {
        "condition": np.repeat(condition, 2, axis=0),
        "scale": np.full(2, 0.7, np.float32),
    }
    conditions |= no_image(run.bundle) | unsteered(run.bundle)

    def guided(latent: NDArray[Any], t: float) -> NDArray[Any]:
        rows = conditions | repeated(latent, t, 2)
        return free(run.noise(rows | control("controlnet", rows), "unet_adapters"))

    x = begin(run.bundle, torch.Generator().manual_seed(SEED))
    got = run.draw(x, levels(run.bundle), guided)
    assert_equal(got, want)
    # It does steer.
    assert (
        psnr(want.image, theirs(pipe, **call, **begun, controlnet_conditioning_scale=0.0).image)
        < 35
    )


def no_image(bundle: Bundle, rows: int = 2) -> Arrays:
    """One token of zeros: no image prompt."""
    width = bundle.manifest.networks["unet_adapters"].inputs["image_keys_values"].shape[2]
    return {"image_keys_values": np.zeros((rows, 1, width or 0), np.float32)}


def unsteered(bundle: Bundle) -> Arrays:
    """What no ControlNet and no T2I-Adapter adds."""
    inputs = bundle.manifest.networks["unet_adapters"].inputs
    named = {n: s for n, s in inputs.items() if n.startswith(("residual_", "adapter_"))}
    return {name: np.zeros(spec.sides(1, 1, 1, 1), np.float32) for name, spec in named.items()}


def unet_inputs(bundle: Bundle, rows: int = 2) -> Arrays:
    """Random latents, contexts of two times 77 tokens and what SDXL is told, at a timestep in the
    middle."""
    random = np.random.default_rng(1)
    manifest = bundle.manifest
    made = {
        "latent": random.standard_normal((rows, 4, 16, 16), np.float32),
        "timestep": np.full(rows, 401, np.float32),
        "context": random.standard_normal((rows, 154, manifest.context.width), np.float32),
    }
    if manifest.context.pooled is not None:
        made["pooled"] = random.standard_normal((rows, manifest.context.pooled), np.float32)
        made["sizes"] = np.full((rows, 6), 128, np.float32)
    return made


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_adapters_that_are_absent_change_nothing(family: str, bundle_of: BundleOf) -> None:
    bundle = bundle_of(family)
    run, inputs = Networks(bundle), unet_inputs(bundle)
    absent = no_image(bundle) | unsteered(bundle)
    got, want = run.noise(inputs | absent, "unet_adapters"), run.noise(inputs)
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_ip_adapters_tokens_are_attended_to_as_in_diffusers(
    family: str, checkpoint_of: CheckpointOf, bundle_of: BundleOf
) -> None:
    bundle, scale = bundle_of(family), 0.6
    run, inputs = Networks(bundle), unet_inputs(bundle)
    unet = UNet2DConditionModel.from_pretrained(checkpoint_of(family), subfolder="unet")
    unet._load_ip_adapter_weights([adapter(unet)])
    embedded = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(2))
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    added: dict[str, Any] = {"image_embeds": [embedded]}
    if "pooled" in given:
        added |= {"text_embeds": given["pooled"], "time_ids": given["sizes"]}
    for name, processor in unet.attn_processors.items():
        if name.endswith("attn2.processor"):
            processor.scale = [scale]
    with torch.no_grad():
        call = (given["latent"], given["timestep"], given["context"])
        want = unet(*call, added_cond_kwargs=added).sample.numpy()
        (image_tokens,) = unet.encoder_hid_proj([embedded])
        pairs = []
        for path in cross_attentions(
            Graph({name: w.shape for name, w in unet.state_dict().items()})
        ):
            processor = unet.attn_processors[f"{path}.processor"]
            keys, values = processor.to_k_ip[0], processor.to_v_ip[0]
            pairs += [keys(image_tokens[:, 0]), scale * values(image_tokens[:, 0])]
        prompt = {"image_keys_values": torch.cat(pairs, dim=-1).numpy()}
    got = run.noise(inputs | unsteered(bundle) | prompt, "unet_adapters")
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    assert np.abs(run.noise(inputs) - want).max() > 0.01 * np.abs(want).max()  # it is seen


def adapter(unet: UNet2DConditionModel) -> dict[str, dict[str, torch.Tensor]]:
    """An IP-Adapter's random weights, for pictures embedded as 24 numbers (arXiv:2308.06721)."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    width = unet.config.cross_attention_dim
    projections = {}
    for k, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            channels = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for part in "kv":
                projections[f"{k}.to_{part}_ip.weight"] = matrix(channels, width)
    proj = {"proj.weight": matrix(4 * width, 24), "proj.bias": torch.zeros(4 * width)}
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    return {"image_proj": proj | norm, "ip_adapter": projections}
