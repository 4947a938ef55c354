"""Provenance: what drew a picture, so that it can be drawn again and compared bit for bit.

`Origin` is the machinery: the bundle, the backend, the machine. `Inputs` are the digests of all
else that a request only names: its pictures, ControlNets, LoRA. Both go into the picture's file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, backends, checksums, cpu, prompts, store
from .bundle import MANIFEST, Bundle
from .canvas import opened, told
from .devices import cuda
from .records import parsed
from .request import Request

if TYPE_CHECKING:
    from .pipeline import Pipeline


@dataclass(frozen=True)
class Origin:
    """What drew pictures.

    bundle_digest: the sha256 of its bundle.json, which has those of all its files
    device: "cpu" or "cuda:N"; machine: the name of that CPU or GPU; features: of the CPU. Both are
        empty where they are not told
    version: of sdfast
    threads: of the CPU; tile, throughput: as the pipeline was opened
    """

    bundle: str
    bundle_digest: str
    backend: str
    backend_version: str
    device: str
    machine: str
    features: tuple[str, ...]
    precision: str
    version: str
    threads: int
    tile: int | None
    throughput: bool

    def unnamed(self) -> Origin:
        """The same without what names the machine, for files that go to others."""
        return replace(self, machine="", features=())

    @classmethod
    def of(
        cls, pipe: Pipeline, threads: int = 0, tile: int | None = None, throughput: bool = False
    ) -> Origin:
        """That of a pipeline which was opened with these."""
        kind, _, number = pipe.device.partition(":")
        return cls(
            bundle=pipe.bundle.name,
            bundle_digest=digest(pipe.bundle.path),
            backend=pipe.backend,
            backend_version=backends.version(pipe.backend),
            device=pipe.device,
            machine=cpu.model() if kind == "cpu" else cuda.model(int(number)),
            features=cpu.features(),
            precision=pipe.precision,
            version=__version__,
            threads=threads or cpu.cores(),
            tile=tile,
            throughput=throughput,
        )


@dataclass(frozen=True)
class Inputs:
    """sha256 of what shaped a picture beside its request, by name.

    pictures: "image", "mask" and "control 0" …, of their pixels as they were read
    bundles: of ControlNets; loras: of files
    """

    pictures: dict[str, str]
    bundles: dict[str, str]
    loras: dict[str, str]


@dataclass(frozen=True)
class Provenance:
    """How a picture was drawn, as its file says.

    together: how many were drawn in one run, of seeds that follow each other; place: its own among
        them, from 0
    """

    origin: Origin
    inputs: Inputs
    together: int = 1
    place: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Any) -> Provenance:
        """From plain data. Raises ValueError for what is none."""
        found: Provenance = parsed(cls, raw)
        if not 0 <= found.place < found.together:
            raise ValueError(f"place is {found.place} among {found.together}")
        return found


def digest(bundle: Path) -> str:
    """What tells the bundle in a folder from every other: see Origin."""
    return checksums.sha256(bundle / MANIFEST)


def inputs(
    request: Request,
    folders: Sequence[Path] = (),
    find: Callable[[str], Path] = store.find,
) -> Inputs:
    """Those of a request that can be drawn. folders: where its LoRA are; find: tells where a
    ControlNet of a name is."""
    pictures = {
        name: told(opened(name, value, mode))
        for name, value, mode in (("image", request.image, "RGB"), ("mask", request.mask, "L"))
        if value is not None
    }
    several = [request.control] if isinstance(request.control, Mapping) else request.control or ()
    for k, one in enumerate(several):
        maps = one["image"] if isinstance(one["image"], list | tuple) else [one["image"]]
        digests = [told(opened("control's image", image)) for image in maps]
        pictures[f"control {k}"] = digests[0] if len(digests) == 1 else digest_of(digests)
    names = {str(one["bundle"]) for one in several}
    return Inputs(
        pictures,
        {name: digest(find(name)) for name in sorted(names)},
        _loras(request, folders),
    )


def _loras(request: Request, folders: Sequence[Path]) -> dict[str, str]:
    texts = [request.prompt, str((request.hires or {}).get("prompt", ""))]
    names = sorted({lora.name for text in texts for lora in prompts.parse(text).loras})
    if not names:
        return {}
    from . import loras

    files = [loras.find(name, folders) for name in names]
    found = checksums.digests(files, store.home() / checksums.MEMORY)
    return dict(zip(names, found, strict=True))


def lora_folders(bundle: Bundle, lora_dir: Path | None = None) -> list[Path]:
    """Where the LoRA of a pipeline are."""
    own = bundle.path / "loras"
    return [own] if lora_dir is None else [own, lora_dir]


def digest_of(data: Any) -> str:
    """The sha256 of plain data, whatever the order of its names."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
