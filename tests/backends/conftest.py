"""What tests of the TensorRT backend share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from backends import bindings
from backends.bindings import Bindings


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
