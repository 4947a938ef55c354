"""What tests of the TensorRT backend share."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backends import bindings, tensorrt_on_cpu
from backends.bindings import Bindings
from backends.demo_engines import DEMO
from backends.tensorrt_on_cpu import Gpu

from sdfast import store
from sdfast.backends import acceptance, tensorrt_library
from sdfast.export.engines import build_engines


def package(name: str) -> Path:
    """Where a package of the extra `dev` is, which need not be importable."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name} is not installed: its wheels are for x86-64 Linux")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def of_11(tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    """The bindings of TensorRT 11."""
    file = package("tensorrt_bindings") / "tensorrt.so"
    return bindings.of_file(file, bindings.stand_ins(tmp_path_factory.mktemp("libraries"), 11))


@pytest.fixture(scope="session")
def of_lean() -> Bindings:
    """The runtime that there is for machines without the builder, as it is imported."""
    package("tensorrt_lean_libs")
    package("tensorrt_lean_bindings")
    return bindings.looked_at(
        "import tensorrt_lean_libs, tensorrt_lean_bindings, sys\n"
        "sys.modules['looked_at'] = tensorrt_lean_bindings\n"
    )


@contextmanager
def emulation() -> Iterator[pytest.MonkeyPatch]:
    """TensorRT is the emulated one, on an emulated GPU."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "tensorrt", tensorrt_on_cpu)
        patched.setattr("sdfast.export.engines.Cuda", Gpu)
        patched.setattr(acceptance, "_RUNS", 1)
        patched.setattr(acceptance, "MARGIN", 0.1)  # it is no faster than ONNX Runtime
        tensorrt_library.log.cache_clear()
        yield patched
        tensorrt_library.log.cache_clear()
        tensorrt_on_cpu.faults.clear()


@pytest.fixture
def emulated() -> Iterator[None]:
    with emulation():
        yield


@pytest.fixture
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test has an empty one."""
    monkeypatch.setenv("SDFAST_HOME", str(tmp_path / "store"))


@pytest.fixture(scope="session")
def unet_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the demo's U-Net and decoder, built once."""
    place = tmp_path_factory.mktemp("built") / "store"
    with emulation() as patched:
        patched.setenv("SDFAST_HOME", str(place))
        built = list(build_engines(DEMO, networks=["unet", "vae_decoder"]))
    assert [outcome.refused for _, outcome in built] == [None] * 9
    return place


@pytest.fixture
def unet(own_store: None, unet_built: Path) -> None:
    """The test's store has the engines of U-Net and decoder."""
    shutil.copytree(unet_built, store.home())
