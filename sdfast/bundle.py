"""Bundles: a model ready to run, as a folder with `bundle.json`.

    NAME/bundle.json            this schema; every file's sha256
    NAME/*.onnx                 one graph a network
    NAME/*.safetensors          weights, which the graphs point into as external data
    NAME/tokenizer/tokenizer.json

A bundle is checked when it is loaded: schema, paths (none leaves the folder), networks (each is
given what it reads), the sha256 of every file, and the files that graphs point into, so that a
damaged or altered bundle never reaches an engine.

Networks and their tensors are those of docs/design.md. What a network's `inputs` do not name it
does not read, and what `outputs` do not name it does not write: that alone tells the forms of a
network apart, never the family.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypeVar

from . import checksums, external_data, networks
from .errors import BundleError
from .records import parsed
from .schedules import NoiseSchedule
from .tensors import TensorSpec

SCHEMA_VERSION = 2
MANIFEST = "bundle.json"
FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner")
TASKS = ("text", "inpaint", "edit", "control")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Difference:
    """How far a network's outputs are from torch's in the precision of the checkpoint: the largest
    absolute and relative difference, the mean absolute difference, the cosine similarity."""

    absolute: float
    relative: float
    mean: float
    cosine: float


@dataclass(frozen=True)
class Graph:
    """What a graph is made of: its opset, the options that it was exported with, how often each
    operator occurs in it, and how often in the same network with every option off."""

    opset: int
    options: tuple[str, ...]
    operators: dict[str, int]
    plain: dict[str, int]


@dataclass(frozen=True)
class Network:
    """One graph: its file, the files of weights that it points into, and its tensors.

    precision: one of networks.PRECISIONS, which its layers compute in but for those of `kept`, in
        float32
    """

    file: str
    weights: tuple[str, ...]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    parameters: int
    precision: str
    kept: tuple[str, ...]
    difference: Difference
    graph: Graph


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
    if not 2 <= betas.count <= 100_000:
        raise ValueError("betas.count must be from 2 to 100000")
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
    """What the text encoders read, in tokens, and the widths of the context and of the pooled
    text (None without) that they write. zeros_for_empty: whether an empty negative prompt is not
    encoded but stands for zeros, as SDXL was trained."""

    tokens: int
    width: int
    pooled: int | None
    zeros_for_empty: bool


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer.json of one text encoder; encoders differ in what they pad with."""

    file: str


@dataclass(frozen=True)
class Defaults:
    """What a request leaves open."""

    sampler: str
    schedule: str
    steps: int
    guidance: float


@dataclass(frozen=True)
class Preview:
    """How previews are drawn: red, green and blue, 0…255, of what a latent stands for are
    weights · latent + bias (three rows of a weight for each channel, three numbers).

    scale: pixels of preview_decoder a latent; None where there is none
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    scale: int | None


@dataclass(frozen=True)
class Manifest:
    """bundle.json.

    family: one of FAMILIES; task: one of TASKS; prediction: one of PREDICTIONS
    latent_scale: what the VAE's latents are multiplied by
    betas, context, defaults: None only where the task is "control", whose one network draws
        nothing by itself
    tokenizers: by text encoder
    files: the sha256 of every other file, by relative path
    source: what it was exported from, and with what
    palette: of a ControlNet for semantic maps, the colour (red, green, blue) of each class
    notes: what the export reported, as LoRA merged and layers kept in float32
    preview: None where the bundle decodes nothing, and in bundles of before there were previews
    """

    schema_version: int
    name: str
    family: str
    task: str
    prediction: str
    latent_scale: float
    betas: Betas | None
    sizes: Sizes
    context: Context | None
    defaults: Defaults | None
    tokenizers: dict[str, Tokenizer]
    networks: dict[str, Network]
    files: dict[str, str]
    source: dict[str, str]
    notes: tuple[str, ...]
    preview: Preview | None = None
    palette: dict[str, tuple[int, int, int]] | None = None


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
    def betas(self) -> Betas:
        """Raises BundleError where the bundle draws nothing by itself; so do the next two."""
        return self._needed(self.manifest.betas)

    @property
    def context(self) -> Context:
        return self._needed(self.manifest.context)

    @property
    def defaults(self) -> Defaults:
        return self._needed(self.manifest.defaults)

    def _needed(self, found: _T | None) -> _T:
        if found is None:
            raise BundleError(
                f"bundle {self.name} is for task {self.manifest.task} and draws no pictures by "
                "itself: use one of another task"
            )
        return found

    def network(self, name: str) -> Path:
        """The graph's file of one of networks.NETWORKS. Raises BundleError where there is none."""
        if name not in self.manifest.networks:
            raise BundleError(f"bundle {self.name} has no {name}: export it again")
        return self.path / self.manifest.networks[name].file


def load(folder: Path, memory: Path | None = None) -> Bundle:
    """The bundle in a folder, all of it checked. Raises BundleError.

    memory: where digests of large files are kept (`checksums`), which are then not read again
    """
    manifest = parse(folder / MANIFEST)
    check_files(folder, manifest, memory)
    _check_graphs(folder, manifest)
    return Bundle(folder, manifest)


def parse(file: Path) -> Manifest:
    """bundle.json as a Manifest. Raises BundleError when it is damaged or of another schema."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read ({error}): export the bundle again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version!r}; this sdfast reads {SCHEMA_VERSION}: export "
            "the checkpoint again with it"
        )
    try:
        manifest: Manifest = parsed(Manifest, raw)
        _check(manifest)
    except ValueError as error:
        raise BundleError(f"{file} is damaged ({error}): export the bundle again") from error
    return manifest


def write(folder: Path, manifest: Manifest) -> None:
    """Writes bundle.json into the folder, which is being made."""
    _check(manifest)
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_files(folder: Path, manifest: Manifest, memory: Path | None = None) -> None:
    """Raises BundleError unless every file is there, inside the folder, with its sha256."""
    for name in manifest.files:
        file = folder / name
        if not file.is_file():
            raise BundleError(f"bundle {folder} lacks {name}: export or download it again")
        if not file.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{name} of bundle {folder} leads out of its folder: do not use it")
    found = checksums.digests((folder / name for name in manifest.files), memory)
    for name, digest in zip(manifest.files, found, strict=True):
        if digest != manifest.files[name]:
            raise BundleError(
                f"{name} of bundle {folder} is damaged or altered (its checksum differs from "
                f"{MANIFEST}'s): export or download it again"
            )


def _check_graphs(folder: Path, manifest: Manifest) -> None:
    """Raises BundleError unless every graph reads its weights, which are files of the bundle, and
    nothing else: engines open whatever a graph names."""
    for network in manifest.networks.values():
        file, known = PurePosixPath(network.file), network.weights
        try:
            found = sorted(external_data.locations((folder / file).read_bytes()))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{file} of bundle {folder} is no graph ({error}): export or download it again"
            ) from error
        if odd := [name for name in found if str(file.parent / name) not in known]:
            raise BundleError(
                f"{file} of bundle {folder} reads {odd[0]!r}, which is not among its weights: do "
                "not use it"
            )


def _check(manifest: Manifest) -> None:
    for wrong in (_wrong_values, _wrong_files, networks.wrong):
        for problem in wrong(manifest):
            raise ValueError(problem)
    if manifest.betas is not None:
        noise_schedule(manifest.betas)


def _wrong_values(manifest: Manifest) -> Iterator[str]:
    sizes, context = manifest.sizes, manifest.context
    for name, allowed in (("family", FAMILIES), ("task", TASKS), ("prediction", PREDICTIONS)):
        if getattr(manifest, name) not in allowed:
            yield f"{name} must be one of {', '.join(allowed)}"
    if min(asdict(sizes).values()) <= 0:
        yield "a size is not positive"
    elif any(
        not sizes.minimum <= side <= sizes.maximum or side % sizes.multiple
        for side in (sizes.width, sizes.height)
    ):
        yield "a default size is out of range"
    if not manifest.latent_scale > 0:
        yield "latent_scale must be above 0"
    if context is not None and not (
        context.tokens > 2 and context.width > 0 and (context.pooled is None or context.pooled > 0)
    ):
        yield "context must be positive"
    if (preview := manifest.preview) is not None:
        rows = [len(row) for row in preview.weights]
        if rows != [sizes.channels] * 3 or len(preview.bias) != 3:
            yield "preview must have three rows of a weight for each channel, and three of bias"
        if not all(map(math.isfinite, (*chain(*preview.weights), *preview.bias))):
            yield "preview must be finite"
        if preview.scale is not None and preview.scale <= 0:
            yield "preview.scale must be above 0"
    for colour in (manifest.palette or {}).values():
        if not all(0 <= level <= 255 for level in colour):
            yield "palette must be of levels from 0 to 255"
    if manifest.task != "control":
        for name in ("betas", "context", "defaults"):
            if getattr(manifest, name) is None:
                yield f"{name} is missing, which task {manifest.task} needs"


def _wrong_files(manifest: Manifest) -> Iterator[str]:
    used = {tokenizer.file for tokenizer in manifest.tokenizers.values()}
    for network in manifest.networks.values():
        used |= {network.file, *network.weights}
    if not used <= set(manifest.files):
        yield "files lacks a network's or a tokenizer's file"
    paths = map(PurePosixPath, manifest.files)
    if any(path.is_absolute() or ".." in path.parts for path in paths):
        yield "a path of files leads out of the folder"


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a folder but its manifest, by relative path."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != MANIFEST]
    names = [f.relative_to(folder).as_posix() for f in files]
    return dict(zip(names, checksums.digests(files), strict=True))
