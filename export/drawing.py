"""One picture drawn by torch: what an exported bundle must draw as well, and, on the way, what real
prompts bring to every network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import noise, samplers
from ..bundle import Bundle, noise_schedule
from ..request import Request, Resolved, resolve
from ..tensors import Tensor
from .components import Checkpoint
from .networks import Options
from .plan import Planned, Values

PROMPT = "a photograph of an astronaut riding a horse on the beach at sunset"
STEPS = 4
DENOISING = ("unet", "unet_shallow", "unet_adapters", "time_projection", "context_projection")
# What int8 is calibrated on besides: other scenes, more of the way from noise to a picture, and the
# usual size: the ranges of smaller pictures cut off what larger ones need (the demo's error is 4
# times as large with them).
MORE_PROMPTS = (
    "a red circle on a blue background",
    "portrait of an old woman, oil on canvas, dark background",
)
MORE_STEPS = 6


@dataclass
class Drawing:
    """A picture u8 [H, W, 3], and what its networks read, by network, without hoisting: in the
    order in which they ran."""

    image: NDArray[np.uint8]
    seen: dict[str, list[Values]] = field(default_factory=dict)


def request(bundle: Bundle, options: Options) -> Request:
    """The picture: few steps of a sampler without noise, of 1/4 of the usual area unless the
    options fix its sides."""
    sizes = bundle.sizes
    side = max(sizes.minimum, sizes.width // 2 // sizes.multiple * sizes.multiple)
    width, height = (
        side if fixed is None else fixed * sizes.scale for fixed in (options.width, options.height)
    )
    return Request(PROMPT, steps=STEPS, sampler="euler", seed=0, width=width, height=height)


def more_requests() -> list[Request]:
    """Other pictures, of the usual size, for calibration alone."""
    prompts = enumerate(MORE_PROMPTS, 1)
    return [Request(p, steps=MORE_STEPS, sampler="euler", seed=seed) for seed, p in prompts]


def draw(
    checkpoint: Checkpoint, plans: Mapping[str, list[Planned]], bundle: Bundle, asked: Request
) -> Drawing:
    """Draws what is asked with the checkpoint's modules, one at a time in memory.

    bundle: the manifest is all that is used of it
    """
    resolved = resolve(asked, bundle)
    networks = {p.name: p for part in plans.values() for p in part}
    drawing = Drawing(np.empty(0, np.uint8))
    with torch.no_grad():
        rows = _conditions(checkpoint, networks, bundle, resolved, drawing)
        latent = _denoised(checkpoint, networks, bundle, resolved, rows, drawing)
        module: Any = checkpoint.components["vae"].module()
        inputs = {"latent": latent}
        drawing.seen["vae_decoder"] = drawing.seen["preview_decoder"] = [inputs]
        image = networks["vae_decoder"].reference(module, inputs)["image"]
        drawing.seen["vae_encoder"] = [{"image": image}]
    drawing.image = image[0].numpy()
    return drawing


def _conditions(
    checkpoint: Checkpoint,
    networks: Mapping[str, Planned],
    bundle: Bundle,
    resolved: Resolved,
    drawing: Drawing,
) -> Values:
    """context and what else the U-Net reads of the texts: a row for each."""
    texts = [resolved.negative_prompt, resolved.prompt]
    embedded = "guidance" in networks["unet"].plain.inputs()
    if embedded or resolved.guidance == 1:
        texts = texts[1:]
    contexts, found = [], Values()
    for name in (n for n in networks if n.startswith("text_encoder")):
        tokenizer = checkpoint.tokenizers[name.replace("text_encoder", "tokenizer")]
        tokens = torch.tensor([tokenizer.encode(text).ids for text in texts], dtype=torch.int32)
        drawing.seen[name] = [{"tokens": tokens}]
        module = checkpoint.components[name].module()
        encoded = networks[name].reference(module, {"tokens": tokens})
        contexts.append(encoded["context"])
        found |= {"pooled": encoded["pooled"]} if "pooled" in encoded else {}
    found["context"] = torch.cat(contexts, -1)
    if len(texts) == 2 and not texts[0] and bundle.context.zeros_for_empty:
        for values in found.values():
            values[0] = 0
    wanted = networks["unet"].plain.inputs()
    if "sizes" in wanted:
        height, width = float(resolved.height), float(resolved.width)
        rows = [[height, width, 0.0, 0.0, height, width]] * len(texts)
        if wanted["sizes"][1] == 5:
            scores = [2.5, 6.0][-len(texts) :]
            rows = [[height, width, 0.0, 0.0, score] for score in scores]
        found["sizes"] = torch.tensor(rows)
    if embedded:
        found["guidance"] = torch.full((1,), resolved.guidance - 1)
    return {name: value for name, value in found.items() if name in wanted}


def _denoised(
    checkpoint: Checkpoint,
    networks: Mapping[str, Planned],
    bundle: Bundle,
    resolved: Resolved,
    rows: Values,
    drawing: Drawing,
) -> torch.Tensor:
    module = checkpoint.components["unet"].module()
    sizes, schedule = bundle.sizes, noise_schedule(bundle.betas)
    batch = len(rows["context"])
    seen: list[Values] = []

    def model(x: torch.Tensor, sigma: float) -> torch.Tensor:
        inputs = {
            "latent": (x / (sigma**2 + 1) ** 0.5).float().expand(batch, -1, -1, -1).contiguous(),
            "timestep": torch.full((batch,), schedule.timestep(sigma)),
            **rows,
        }
        seen.append(inputs)
        found = networks["unet"].reference(module, inputs)
        inputs |= {name: found[name] for name in found if name == "features"}
        out = found["noise"].double()
        guided = out[:1] + resolved.guidance * (out[1:] - out[:1]) if batch == 2 else out
        return _denoise(bundle.manifest.prediction, x, guided, sigma)

    shape = (1, sizes.channels, resolved.height // sizes.scale, resolved.width // sizes.scale)
    start = Tensor.empty(shape, "f32")
    noise.streams("gaussian", resolved.rng, resolved.seeds)[0](start)
    x = torch.from_numpy(np.array(start)).double() * (resolved.sigmas[0] ** 2 + 1) ** 0.5
    x = samplers.get(resolved.sampler).sample(model, x, resolved.sigmas)
    for name in DENOISING:
        drawing.seen[name] = seen
    return x.float()


def _denoise(prediction: str, x: torch.Tensor, out: torch.Tensor, sigma: float) -> torch.Tensor:
    """D of what the network gives, as devices/cpu does it."""
    if prediction == "epsilon":
        return x - sigma * out
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * out
    return out
