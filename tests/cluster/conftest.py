"""Two nodes of Ray; skipped without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import MEMORY, Nodes

from sdfast import store


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Two of one core each, that this process is connected to: a head, whose store is that of the
    tests, and "second"."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install sdfast[ray]")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": MEMORY}
    )
    made = Nodes(tmp_path / "nodes", cluster)
    try:
        made.add("second")
        ray.init(address=cluster.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """The demo bundle under a name that no store knows."""
    folder = Path(shutil.copytree(store.find("demo"), tmp_path / "elsewhere"))
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["name"] = "unknown"
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder
