"""What a checkpoint is: its family, its task and what its U-Net predicts, told from its components.

None of it depends on the widths of layers, so that small models are told as well as large ones.

    family        the U-Net (or ControlNet) adds …       the text encoder's activation
    sdxl          text and 6 ids (sizes, crop)           any
    sdxl-refiner  text and 5 ids (sizes, crop, score)    any
    sd2           nothing                                gelu: OpenCLIP trained it
    sd1           nothing                                quick_gelu: OpenAI's CLIP

A ControlNet alone has no text encoder: it is of SDXL where it adds text and ids, of SD 2 where its
transformers project by linear layers, of SD 1 where they do by convolutions. A T2I-Adapter is of
SDXL where it is a full_adapter_xl, else of SD 1; nothing in it tells SD 2.

    task     channels the U-Net takes, for a VAE of n latent channels
    text     n
    edit     2n      the latent of the picture to edit (InstructPix2Pix)
    inpaint  2n + 1  the masked picture's latent and the mask
    control  a ControlNet or a T2I-Adapter alone
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..bundle import FAMILIES, PREDICTIONS
from ..errors import CheckpointError, nearest
from .components import Component

XL_IDS = {"sdxl": 6, "sdxl-refiner": 5}
LATENT_SCALES = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "sdxl-refiner": 0.13025}


def family(components: Mapping[str, Component], forced: str | None = None) -> str:
    """One of FAMILIES. Raises CheckpointError where `forced` is another than the components'."""
    if forced is not None and forced not in FAMILIES:
        raise CheckpointError(
            f"family {forced!r} is unknown{nearest(forced, FAMILIES)}; known: {', '.join(FAMILIES)}"
        )
    found, reason = _family(components)
    if forced in (None, found):
        return found
    alike = {"sd1", "sd2", "sdxl"} if "t2i_adapter" in components else {"sd1", "sd2"}
    if "text_encoder" not in components and {forced, found} <= alike:
        return str(forced)  # nothing in it contradicts
    raise CheckpointError(f"the checkpoint is of family {found}, not {forced}: {reason}")


def _family(components: Mapping[str, Component]) -> tuple[str, str]:
    if "t2i_adapter" in components:
        kind = components["t2i_adapter"].config["adapter_type"]
        return "sdxl" if kind == "full_adapter_xl" else "sd1", f"it is a {kind}"
    denoiser = components.get("unet") or components["controlnet"]
    added = denoiser.config.get("addition_embed_type")
    if added == "text_time":
        return _xl_family(components, denoiser.config)
    if added is not None or denoiser.config.get("class_embed_type") is not None:
        raise CheckpointError(
            f"its {denoiser.kind} is conditioned on {added or 'a class embedding'}, as no"
            " Stable Diffusion 1.x, 2.x or XL is"
        )
    if "text_encoder" in components:
        activation = components["text_encoder"].config["hidden_act"]
        found = "sd1" if activation == "quick_gelu" else "sd2"
        return found, f"its text encoder's activation is {activation}"
    if denoiser.config.get("use_linear_projection"):
        return "sd2", "its transformers project by linear layers"
    return "sd1", "its transformers project by convolutions"


def _xl_family(components: Mapping[str, Component], config: Mapping[str, Any]) -> tuple[str, str]:
    if "text_encoder_2" not in components:
        return "sdxl", "it adds text and size ids"
    pooled = components["text_encoder_2"].config["projection_dim"]
    for name, ids in XL_IDS.items():
        whole = pooled + ids * (config["addition_time_embed_dim"] or 0)
        if config["projection_class_embeddings_input_dim"] == whole:
            return name, f"its U-Net adds text and {ids} ids"
    raise CheckpointError(
        f"its U-Net adds {config['projection_class_embeddings_input_dim']} numbers to the time"
        f" embedding: neither SDXL's 6 ids nor the refiner's 5 of"
        f" {config['addition_time_embed_dim']} each beside {pooled} of pooled text"
    )


def task(components: Mapping[str, Component]) -> str:
    """One of TASKS. Raises CheckpointError for a U-Net of other tasks."""
    if "unet" not in components:
        return "control"
    latents = components["vae"].config["latent_channels"]
    channels = components["unet"].config["in_channels"]
    tasks = {latents: "text", 2 * latents: "edit", 2 * latents + 1: "inpaint"}
    if channels not in tasks:
        allowed = ", ".join(f"{count} ({name})" for count, name in tasks.items())
        raise CheckpointError(
            f"its U-Net takes {channels} channels; with this VAE the exporter takes {allowed}"
        )
    return tasks[channels]


def prediction(scheduler: Mapping[str, Any], forced: str | None = None) -> str:
    """One of PREDICTIONS: the forced one, the scheduler's, or "epsilon", its default."""
    found = scheduler.get("prediction_type", "epsilon") if forced is None else forced
    if found not in PREDICTIONS:
        raise CheckpointError(
            f"prediction {found!r} is unknown{nearest(str(found), PREDICTIONS)};"
            f" known: {', '.join(PREDICTIONS)}"
        )
    return str(found)
