"""What several tests share: the demo bundle's pipeline, and copies of the bundle to damage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdfast
from sdfast import store


def pytest_configure() -> None:
    """Each worker has its share of the cores, and starts a thread for each of them alone: threads
    that wait for one another, on cores that other workers use, take ten times as long."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    number, workers = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    cores = sorted(os.sched_getaffinity(0))
    own = cores[number % len(cores) :: workers]
    os.sched_setaffinity(0, own)
    os.environ["OMP_NUM_THREADS"] = str(len(own))  # torch counts those of others too


@pytest.fixture(scope="session", autouse=True)
def store_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A store of their own: nothing is compiled into the user's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SDFAST_HOME", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="session")
def demo() -> sdfast.Pipeline:
    """The demo bundle, opened once, by the backend that is exact to the bit at every batch."""
    return sdfast.load("demo", backend="onnxruntime")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the demo bundle in a folder of its own."""
    return Path(shutil.copytree(store.find("demo"), tmp_path / "copied"))


@pytest.fixture(scope="session")
def data() -> Path:
    """Reference data."""
    return Path(__file__).parent / "data"
