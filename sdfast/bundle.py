"""Bundles: a model ready to run, as a folder with `bundle.json`.

    NAME/bundle.json            this schema; every file's sha256
    NAME/*.onnx                 one graph a network
    NAME/*.safetensors          its weights, which the graph points into as external data
    NAME/tokenizer/tokenizer.json

A bundle is checked when it is loaded: schema, paths (none leaves the folder), and the sha256 of
every file, so that a damaged or altered bundle never reaches an engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .errors import BundleError
from .schedules import NoiseSchedule
from .tensors import TensorSpec

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Difference:
    """The largest difference of a network's output to the module that it was exported from."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class Network:
    """One graph: its file, its weights' file, its tensors, and how far it is from its module."""

    file: str
    weights: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    parameters: int
    difference: Difference


@dataclass(frozen=True)
class Betas:
    """The noise schedule that the model was trained on (`schedules.NoiseSchedule.from_betas`)."""

    name: str
    start: float
    end: float
    count: int
    zero_terminal_snr: bool


@cache
def noise_schedule(betas: Betas) -> NoiseSchedule:
    """The noise levels that the model was trained on. Raises ValueError for betas of none."""
    return NoiseSchedule.from_betas(
        betas.name,
        betas.start,
        betas.end,
        betas.count,
        zero_terminal_snr=betas.zero_terminal_snr,
    )


@dataclass(frozen=True)
class Sizes:
    """Pictures that the model draws, in pixels: default, allowed range, and what they must be a
    multiple of. A latent has `channels` channels and 1 / `scale` of a picture's sides."""

    width: int
    height: int
    minimum: int
    maximum: int
    multiple: int
    channels: int
    scale: int


@dataclass(frozen=True)
class Context:
    """What the text encoder reads, in tokens, and the width of the context that it writes."""

    tokens: int
    width: int


@dataclass(frozen=True)
class Defaults:
    """What a request leaves open."""

    sampler: str
    schedule: str
    steps: int
    guidance: float


@dataclass(frozen=True)
class Manifest:
    """bundle.json."""

    schema_version: int
    name: str
    family: str
    prediction: str
    latent_scale: float
    betas: Betas
    sizes: Sizes
    context: Context
    defaults: Defaults
    tokenizer: str
    networks: dict[str, Network]
    files: dict[str, str]
    source: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A checked bundle on disk."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def sizes(self) -> Sizes:
        return self.manifest.sizes

    @property
    def defaults(self) -> Defaults:
        return self.manifest.defaults

    def network(self, name: str) -> Path:
        """The graph's file of one of NETWORKS. Raises BundleError when the bundle has none."""
        if name not in self.manifest.networks:
            raise BundleError(f"bundle {self.name} has no {name}: export it again")
        return self.path / self.manifest.networks[name].file


def load(folder: Path) -> Bundle:
    """The bundle in a folder, all of it checked. Raises BundleError."""
    manifest = parse(folder / MANIFEST)
    check_files(folder, manifest)
    return Bundle(folder, manifest)


def parse(file: Path) -> Manifest:
    """bundle.json as a Manifest. Raises BundleError when it is damaged or of another schema."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}): export the bundle again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version!r}; this sdfast reads {SCHEMA_VERSION}: export "
            "the checkpoint again with it"
        )
    try:
        manifest: Manifest = _parsed(Manifest, raw, "")
        _check(manifest)
    except ValueError as error:
        raise BundleError(f"{file} is damaged ({error}): export the bundle again") from error
    return manifest


def write(folder: Path, manifest: Manifest) -> None:
    """Writes bundle.json into the folder, which is being made."""
    _check(manifest)
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises BundleError unless every file is there, inside the folder, with its sha256."""
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"bundle {folder} lacks {name}: export or download it again")
        if not file.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{name} of bundle {folder} leads out of its folder: do not use it")
        if sha256(file) != expected:
            raise BundleError(
                f"{name} of bundle {folder} is damaged or altered (its checksum differs from "
                f"{MANIFEST}'s): export or download it again"
            )


def sha256(file: Path) -> str:
    """The file's digest in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(manifest: Manifest) -> None:
    sizes = manifest.sizes
    missing = [name for name in NETWORKS if name not in manifest.networks]
    used = {manifest.tokenizer}
    for network in manifest.networks.values():
        used |= {network.file, network.weights}
    inside = all(
        not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        for name in manifest.files
    )
    conditions = {
        f"networks lacks {', '.join(missing)}": not missing,
        "files lacks a network's or the tokenizer's file": used <= set(manifest.files),
        "a path of files leads out of the folder": inside,
        f"prediction must be one of {', '.join(PREDICTIONS)}": manifest.prediction in PREDICTIONS,
        "a size is not positive": min(asdict(sizes).values()) > 0,
        "a default size is out of range": all(
            sizes.minimum <= side <= sizes.maximum and side % max(sizes.multiple, 1) == 0
            for side in (sizes.width, sizes.height)
        ),
        "latent_scale must be above 0": manifest.latent_scale > 0,
        "betas.count must be from 2 to 100000": 2 <= manifest.betas.count <= 100_000,
        "context must be positive": manifest.context.tokens > 2 and manifest.context.width > 0,
    }
    for problem, holds in conditions.items():
        if not holds:
            raise ValueError(problem)
    noise_schedule(manifest.betas)


def _parsed(kind: Any, raw: Any, where: str) -> Any:
    """`raw` as `kind`: a dataclass, dict, tuple, union or plain type. Raises ValueError with the
    place."""
    origin = get_origin(kind)
    if hasattr(kind, "__dataclass_fields__"):
        return _record(kind, raw, where)
    if origin is dict and isinstance(raw, dict):
        return {
            key: _parsed(get_args(kind)[1], value, f"{where}.{key}") for key, value in raw.items()
        }
    if origin is tuple and isinstance(raw, list):
        return tuple(_parsed(get_args(kind)[0], value, where) for value in raw)
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    plain = get_args(kind) if origin is UnionType else (kind,)
    if origin in (dict, tuple) or type(raw) not in plain:
        raise ValueError(f"{where.lstrip('.') or 'the file'} is {type(raw).__name__}")
    return raw


def _record(kind: Any, raw: Any, where: str) -> Any:
    wanted = [f.name for f in fields(kind)]
    if not isinstance(raw, dict) or set(raw) != set(wanted):
        given = raw if isinstance(raw, dict) else {}
        odd = sorted(set(wanted) ^ set(given))
        raise ValueError(f"{where.lstrip('.') or 'the file'} lacks or has too many of {odd}")
    hints = get_type_hints(kind)
    make: Callable[..., Any] = kind
    return make(**{n: _parsed(hints[n], raw[n], f"{where}.{n}") for n in wanted})


def digests(folder: Path) -> Mapping[str, str]:
    """The sha256 of every file of a folder but its manifest, by relative path."""
    return {
        file.relative_to(folder).as_posix(): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
