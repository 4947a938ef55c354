"""Where checkpoints come from: a folder in diffusers' layout, one file, or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import CheckpointError
from . import families, hub, single_file, tokenizers, weight_files
from .components import Checkpoint, Component, component
from .weight_files import read_json

CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "controlnet": ("ControlNetModel",),
}
NEEDED = {
    "sd1": ("text_encoder",),
    "sd2": ("text_encoder",),
    "sdxl": ("text_encoder", "text_encoder_2"),
    "sdxl-refiner": ("text_encoder_2",),
}
_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def read(
    source: str | Path,
    *,
    revision: str | None = None,
    family: str | None = None,
    prediction: str | None = None,
    vae: Path | None = None,
    tokenizer: Path | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Reads a checkpoint; weights stay on the disk until they are used.

    source: a folder in diffusers' layout (of a whole model, or of one ControlNet), a file in the
        original layout, or "owner/name" on the hub, where `revision` may be a branch, tag or commit
    family, prediction: what is detected otherwise (families.py)
    vae: an AutoencoderKL or AutoencoderTiny, folder or file, in place of the checkpoint's own
    tokenizer: a folder with CLIP's vocabulary in place of the checkpoint's; a file has none
    allow_pickle: takes .ckpt, .bin, .pt and .pth, and loads nothing but tensors from them

    Raises CheckpointError, naming the file or tensor, for everything that is missing or wrong.
    """
    name = str(source)
    path = Path(source)
    if path.is_file():
        parts = _file(path, vae is None, tokenizer, prediction, allow_pickle)
    elif path.is_dir():
        parts = _folder(path, vae is None, tokenizer, allow_pickle)
    elif path.suffix not in (".safetensors", *weight_files.PICKLES) and hub.is_id(name):
        place = hub.fetch(name, revision, allow_pickle)
        parts = _folder(place, vae is None, tokenizer, allow_pickle)
        name = name if revision is None else f"{name}@{revision}"
    else:
        raise CheckpointError(
            f"there is no {name}: give a folder in diffusers' layout (model_index.json, unet/, …),"
            " a .safetensors file in the original layout, or owner/name of a model on the hub"
        )
    return _checkpoint(name, parts, family, prediction, vae, allow_pickle)


def read_vae(path: Path, family: str = "sd1", *, allow_pickle: bool = False) -> Component:
    """An AutoencoderKL or AutoencoderTiny, from its folder or one file. family: whose latents it
    reads, which tells their scale where no configuration does. Raises CheckpointError."""
    if path.is_file():
        weights = weight_files.read(path, allow_pickle)
        return single_file.vae(weights, families.LATENT_SCALES[family], path)
    if not path.is_dir():
        raise CheckpointError(f"there is no VAE {path}: give its folder, or a .safetensors file")
    place = path / "vae" if (path / "model_index.json").is_file() else path
    return _part(place, "vae", allow_pickle)


@dataclass(frozen=True)
class _Parts:
    """What a folder or file holds."""

    components: Mapping[str, Component]
    scheduler: Mapping[str, Any]
    tokenizers: Mapping[str, Tokenizer]


def _checkpoint(
    name: str,
    parts: _Parts,
    family: str | None,
    prediction: str | None,
    vae: Path | None,
    allow_pickle: bool,
) -> Checkpoint:
    components = dict(parts.components)
    found = families.family(components, family)
    if vae is not None and "unet" in components:
        components["vae"] = read_vae(Path(vae), found, allow_pickle=allow_pickle)
    if "unet" in components:
        for part in (*NEEDED[found], "vae"):
            if part not in components:
                raise CheckpointError(f"{part} is missing from {name}: {found} needs it")
    foreseen = families.prediction(parts.scheduler, prediction)
    scheduler = dict(parts.scheduler)
    if scheduler:
        scheduler["prediction_type"] = foreseen
    task = families.task(components)
    return Checkpoint(name, found, task, foreseen, components, scheduler, parts.tokenizers)


def _file(
    file: Path,
    needs_vae: bool,
    tokenizer: Path | None,
    prediction: str | None,
    allow_pickle: bool,
) -> _Parts:
    weights = weight_files.read(file, allow_pickle)
    components, scheduler = single_file.read(weights, file, prediction)
    if "unet" not in components:
        return _Parts(components, {}, {})
    if needs_vae and "vae" not in components:
        raise CheckpointError(
            f"{file} has no baked-in VAE: pass --vae, a folder or file of the VAE it was made with"
        )
    made = {}
    for part, named in _TOKENIZERS.items():
        if part in components:
            length = components[part].config["max_position_embeddings"]
            pad = _padding(components[part])
            made[named] = (
                tokenizers.published(length, pad)
                if tokenizer is None
                else tokenizers.read(Path(tokenizer), length, pad)
            )
            _require_vocabulary(made[named], components[part], tokenizer or tokenizers.PUBLISHED)
    return _Parts(components, scheduler, made)


def _folder(folder: Path, needs_vae: bool, tokenizer: Path | None, allow_pickle: bool) -> _Parts:
    if not (folder / "model_index.json").is_file() and (folder / "config.json").is_file():
        kind = read_json(folder / "config.json").get("_class_name")
        if kind in CLASSES["vae"]:
            raise CheckpointError(
                f"{folder} is an {kind} alone, which replaces a checkpoint's: --vae FOLDER"
            )
        return _Parts({"controlnet": _part(folder, "controlnet", allow_pickle)}, {}, {})
    index = read_json(folder / "model_index.json")
    components = {}
    for part in CLASSES:
        if _class_of(index, part) is not None and (part != "vae" or needs_vae):
            components[part] = _part(folder / part, part, allow_pickle)
    if "unet" not in components or not components.keys() & _TOKENIZERS.keys():
        lacking = "unet" if "unet" not in components else "text_encoder"
        raise CheckpointError(
            f"{lacking} is missing from {folder}, a {index.get('_class_name')}: the exporter takes"
            " Stable Diffusion 1.x, 2.x and XL, and ControlNets"
        )
    made = {}
    for part, named in _TOKENIZERS.items():
        if part in components:
            place = folder / named if tokenizer is None else Path(tokenizer)
            length = components[part].config["max_position_embeddings"]
            pad = None if tokenizer is None else _padding(components[part])
            made[named] = tokenizers.read(place, length, pad)
            _require_vocabulary(made[named], components[part], place)
    return _Parts(components, read_json(folder / "scheduler" / "scheduler_config.json"), made)


def _class_of(index: Mapping[str, Any], part: str) -> Any:
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else entry


def _part(place: Path, part: str, allow_pickle: bool) -> Component:
    config = read_json(place / "config.json")
    # transformers lists the class among architectures; old files of either library name none.
    named = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    kind = CLASSES[part][0] if named is None else named
    if kind not in CLASSES[part]:
        raise CheckpointError(
            f"{part} of {place} is a {kind}; the exporter takes {' or '.join(CLASSES[part])}"
        )
    return component(kind, config, weight_files.read_folder(place, allow_pickle), place)


def _padding(encoder: Component) -> str:
    """The token that an encoder's training padded with: OpenCLIP's is token 0."""
    return tokenizers.END if encoder.config["hidden_act"] == "quick_gelu" else "!"


def _require_vocabulary(tokenizer: Tokenizer, encoder: Component, place: object) -> None:
    most, size = max(tokenizer.get_vocab().values()), encoder.config["vocab_size"]
    if most >= size:
        raise CheckpointError(
            f"the tokenizer of {place} has tokens up to {most}, the text encoder {size} of them:"
            " it is another model's"
        )
