"""The exporter: checkpoints in diffusers' layout become bundles.

    from sdfast.export import export
    export(Path("checkpoint"), Path("my-bundle"))

Needs the extra `export` (torch, diffusers, transformers, onnx, onnxscript); the runtime does not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..bundle import Bundle
from ..errors import BackendUnavailable

__all__ = ["export", "random_checkpoint"]

Progress = Callable[[str, int, int], None]
"""progress(what is being done, stages done, stages in all)."""


def export(
    checkpoint: Path,
    destination: Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Bundle:
    """Exports a checkpoint folder into a new bundle at `destination`.

    The bundle appears whole or not at all. An existing destination is refused unless `overwrite`
    is set and it is a bundle. Raises CheckpointError for what cannot be exported, OutputError for
    a destination that cannot be written, BackendUnavailable where the extra is not installed.
    """
    try:
        from .exporter import export_checkpoint
    except ImportError as error:
        raise BackendUnavailable(
            f"exporting needs {error.name}, which is not installed: pip install 'sdfast[export]'"
        ) from error
    return export_checkpoint(checkpoint, destination, overwrite, progress)


def random_checkpoint(family: str, destination: Path, seed: int = 0) -> Path:
    """Writes a checkpoint with random weights in diffusers' layout, for tests and benchmarks, and
    returns its folder. family: a published model's name, as "sd15" or "sdxl", at its real sizes and
    fp16; "tiny-sd15" and so on: small ones in float32; "demo". CheckpointError lists all names."""
    from .random_models import write

    return write(family, destination, seed)
