"""A cluster of several nodes on this machine, each with a store of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MEMORY = 80 << 20  # bytes of each node's object store: the least that Ray takes


@dataclass
class Nodes:
    """A head, whose store is that of the tests, and others."""

    folders: pytest.TempPathFactory
    cluster: Any
    homes: dict[str, Path] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, name: str) -> None:
        """Starts a node of that name and store."""
        self.homes[name] = self.folders.mktemp(name)
        self.others[name] = self.cluster.add_node(
            num_cpus=1,
            object_store_memory=MEMORY,
            env_vars={"SDFAST_HOME": str(self.homes[name])},
        )

    def kill(self, name: str) -> None:
        """Kills all of its processes."""
        self.cluster.remove_node(self.others.pop(name), allow_graceful=False)
