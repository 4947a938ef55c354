"""What a service tells its worker first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Opening:
    """The first message: what to open, and how.

    bundles: their folders, by the names they are served under; controls: those of ControlNets
    rows, order: of the Batcher
    """

    bundles: Mapping[str, str]
    backend: str
    device: str
    threads: int
    precision: str
    lora_dir: str | None
    controls: Mapping[str, str]
    rows: int
    order: str
