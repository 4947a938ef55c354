"""What the processes of a benchmark have in common: which bundle, which requests, on what."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdfast import pipeline
from sdfast.bundle import MANIFEST, Bundle
from sdfast.errors import InvalidRequest
from sdfast.request import Request, Resolved, resolve

from .machine import described
from .samplers import PROMPTS

DEMO_PROMPTS = (
    "a small red circle on a blue background",
    "a large green star on a white background",
    "a yellow square on a black background",
    "a big blue triangle on a grey background",
)


def opened(bundle: str, options: Mapping[str, Any]) -> Bundle:
    """The bundle, after `sdfast.load` took these options for it. Raises what that raises, and
    InvalidRequest for an option that it does not have."""
    known = set(inspect.signature(pipeline.load).parameters) - {"bundle"}
    for name in options:
        if name not in known:
            raise InvalidRequest(
                f"{name} is no option of loading a bundle; use one of {', '.join(sorted(known))}"
            )
    pipe = pipeline.load(bundle, **options)
    pipe.close()
    return pipe.bundle


def drawn(bundle: Bundle, request: Request) -> Resolved:
    """The request as the processes draw it. Raises InvalidRequest."""
    return resolve(replace(request, sampler="dpmpp_2m", schedule="karras"), bundle)


def prompts(bundle: Bundle) -> tuple[str, ...]:
    """What pictures are asked for."""
    return DEMO_PROMPTS if bundle.name == "demo" else PROMPTS


def conditions(bundle: Bundle, **more: Any) -> tuple[dict[str, Any], str]:
    """What must be the same for records to be comparable, and today's date (ISO)."""
    header = described("")
    manifest = (bundle.path / MANIFEST).read_bytes()
    common = {
        "bundle": bundle.name,
        "bundle_sha256": hashlib.sha256(manifest).hexdigest(),
        **more,
        "machine": header["machine"],
        "versions": header["versions"],
    }
    return common, str(header["date"])


def checkpoint_sha256(checkpoint: Path) -> str:
    """Of a folder's JSON files, and of the names and sizes of all its files: other weights of the
    same networks take as long."""
    digest = hashlib.sha256()
    for file in sorted(f for f in checkpoint.rglob("*") if f.is_file()):
        digest.update(f"{file.relative_to(checkpoint)} {file.stat().st_size}\n".encode())
        if file.suffix == ".json":
            digest.update(file.read_bytes())
    return digest.hexdigest()
