"""What the exporter's tests share: small random checkpoints, each family's bundle exported once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from sdfast.bundle import Bundle
from sdfast.export import export, random_checkpoint

CheckpointOf = Callable[..., Path]
BundleOf = Callable[[str], Bundle]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small cost less than handing them to another thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """checkpoint_of(family, seed=0): a small checkpoint's folder, written once."""
    place = tmp_path_factory.mktemp("checkpoints")

    @cache
    def checkpoint(family: str, seed: int = 0) -> Path:
        return random_checkpoint(f"tiny-{family}", place / f"{family}-{seed}", seed)

    return checkpoint


@pytest.fixture(scope="session")
def bundle_of(checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> BundleOf:
    """bundle_of(family): what that checkpoint exports to, exported once."""
    place = tmp_path_factory.mktemp("bundles")

    @cache
    def bundle(family: str) -> Bundle:
        return export(checkpoint_of(family), place / family)

    return bundle
