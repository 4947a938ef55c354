"""Two nodes of Ray; skipped without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import MEMORY, Nodes

from sdfast import store


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """That this process is connected to: a head of one core, whose store is that of the tests."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install sdfast[ray]")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=started.address, log_to_driver=False)
        yield Nodes(tmp_path_factory, started)
    finally:
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    """The head and "second", another node of one core, whose store is empty where it is new."""
    if "second" not in cluster.others:
        cluster.add("second")
    return cluster


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """The demo bundle under a name that no store knows."""
    folder = Path(shutil.copytree(store.find("demo"), tmp_path / "elsewhere"))
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["name"] = "unknown"
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder
