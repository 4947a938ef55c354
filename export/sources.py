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
    "t2i_adapter": ("T2IAdapter",),
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
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Reads a checkpoint; weights stay on the disk until they are used.

    source: a folder in diffusers' layout (of a whole model, or of one ControlNet or
        T2I-Adapter), a file in the original layout, or "owner/name" on the hub, where
        `revision` may be a branch, tag or commit
    family, prediction: what is detected otherwise (families.py)
    vae: an AutoencoderKL or AutoencoderTiny, folder or file, in place of the checkpoint's own
    tokenizer: a folder with CLIP's vocabulary in place of the checkpoint's; a file has none
    allow_pickle: takes .ckpt, .bin, .pt and .pth, and loads nothing but tensors from them

    Raises CheckpointError, naming the file or tensor, for everything that is missing or wrong.
    """
    vae_place, words = (None if place is None else Path(place) for place in (vae, tokenizer))
    options = _Options(family, prediction, vae_place, words, allow_pickle)
    try:
        return _read(str(source), revision, options)
    except CheckpointError as error:
        if str(source) in str(error):
            raise
        raise CheckpointError(f"{source}: {error}") from error


@dataclass(frozen=True)
class _Options:
    """What `read` was asked for besides the source."""

    family: str | None
    prediction: str | None
    vae: Path | None
    tokenizer: Path | None
    allow_pickle: bool


def _read(source: str, revision: str | None, options: _Options) -> Checkpoint:
    path = Path(source)
    if path.is_file():
        return _checkpoint(source, _file(path, options), options)
    if path.is_dir():
        return _checkpoint(source, _folder(path, options), options)
    if path.suffix not in (".safetensors", *weight_files.PICKLES) and hub.is_id(source):
        place = hub.fetch(source, revision, options.allow_pickle)
        return _checkpoint(f"{source}@{place.name}", _folder(place, options), options)
    raise CheckpointError(
        f"there is no {source}: give a folder in diffusers' layout (model_index.json, unet/, …),"
        " a .safetensors file in the original layout, or owner/name of a model on the hub"
    )


def read_vae(path: str | Path, family: str = "sd1", *, allow_pickle: bool = False) -> Component:
    """An AutoencoderKL or AutoencoderTiny, from its folder or one file. family: whose latents it
    reads, which tells their scale where no configuration does. Raises CheckpointError."""
    path = Path(path)
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


def _checkpoint(name: str, parts: _Parts, options: _Options) -> Checkpoint:
    components = dict(parts.components)
    found = families.family(components, options.family)
    if options.vae is not None:
        components["vae"] = read_vae(options.vae, found, allow_pickle=options.allow_pickle)
    needed = (*NEEDED[found], "vae") if "unet" in components else ()
    for part in needed:
        if part not in components:
            raise CheckpointError(f"{part} is missing from {name}: {found} needs it")
    prediction = families.prediction(parts.scheduler, options.prediction)
    scheduler = dict(parts.scheduler)
    if scheduler:
        scheduler["prediction_type"] = prediction
    task = families.task(components)
    return Checkpoint(name, found, task, prediction, components, scheduler, parts.tokenizers)


def _file(file: Path, options: _Options) -> _Parts:
    weights = weight_files.read(file, options.allow_pickle)
    components, scheduler = single_file.read(weights, file, options.prediction)
    if "unet" in components and "vae" not in components and options.vae is None:
        raise CheckpointError(
            f"{file} has no baked-in VAE: pass --vae, a folder or file of the VAE it was made with"
        )
    made = {}
    for name, encoder in _read_by_tokenizers(components):
        length = encoder.config["max_position_embeddings"]
        made[name] = (
            tokenizers.published(length, _padding(encoder))
            if options.tokenizer is None
            else tokenizers.read(options.tokenizer, length, _padding(encoder))
        )
        _require_vocabulary(made[name], encoder, options.tokenizer or tokenizers.PUBLISHED)
    return _Parts(components, scheduler, made)


def _folder(folder: Path, options: _Options) -> _Parts:
    if not (folder / "model_index.json").is_file() and (folder / "config.json").is_file():
        return _Parts(_control(folder, options), {}, {})
    index = read_json(folder / "model_index.json")
    components = {
        part: _part(folder / part, part, options.allow_pickle)
        for part in CLASSES
        if _has(index, part) and (part != "vae" or options.vae is None)
    }
    for part, alternatives in (("unet", {"unet"}), ("text_encoder", _TOKENIZERS.keys())):
        if not components.keys() & alternatives:
            raise CheckpointError(
                f"{part} is missing from {folder}, a {index.get('_class_name')}: the exporter"
                " takes Stable Diffusion 1.x, 2.x and XL, ControlNets and T2I-Adapters"
            )
    made = {}
    for name, encoder in _read_by_tokenizers(components):
        place = options.tokenizer or folder / name
        pad = None if options.tokenizer is None else _padding(encoder)
        made[name] = tokenizers.read(place, encoder.config["max_position_embeddings"], pad)
        _require_vocabulary(made[name], encoder, place)
    return _Parts(components, read_json(folder / "scheduler" / "scheduler_config.json"), made)


def _control(folder: Path, options: _Options) -> dict[str, Component]:
    kind = read_json(folder / "config.json").get("_class_name")
    if kind in CLASSES["vae"]:
        raise CheckpointError(
            f"{folder} is an {kind} alone, which replaces a checkpoint's: --vae FOLDER"
        )
    name = "t2i_adapter" if kind in CLASSES["t2i_adapter"] else "controlnet"
    return {name: _part(folder, name, options.allow_pickle)}


def _read_by_tokenizers(components: Mapping[str, Component]) -> list[tuple[str, Component]]:
    """Each tokenizer's name with the text encoder that reads its tokens."""
    return [(name, components[part]) for part, name in _TOKENIZERS.items() if part in components]


def _has(index: Mapping[str, Any], part: str) -> bool:
    """model_index.json has [library, class] for a part, [null, null] for one left out."""
    entry = index.get(part)
    return isinstance(entry, list) and entry[1:2] not in ([], [None])


def _part(place: Path, part: str, allow_pickle: bool) -> Component:
    config = read_json(place / "config.json")
    # transformers lists the class among architectures; old files of either library name none.
    classes = config.get("architectures")
    named = config.get("_class_name") or (
        classes[0] if classes and isinstance(classes, list) else None
    )
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
