"""The GPU's kernels compile for the architectures that are in use; what they compute is tested in
test_runs.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sdfast.devices import cuda
from sdfast.errors import BackendUnavailable

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_they_compile_at_run_time(architecture: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    binary = cuda.compiled(architecture)
    assert binary.startswith(b"\x7fELF")
    for kernel in cuda.KERNELS:
        assert f".text.{kernel}\0".encode() in binary


def test_an_architecture_that_nobody_knows_is_refused() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    with pytest.raises(BackendUnavailable, match="sm_7"):
        cuda.compiled("sm_7")


def test_a_mistake_in_them_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    shutil.copytree(cuda.SOURCES, tmp_path / "native")
    source = tmp_path / "native" / "kernels.cu"
    source.write_text(source.read_text().replace("double sigma", "dubble sigma"))
    monkeypatch.setattr(cuda, "SOURCES", tmp_path / "native")
    with pytest.raises(BackendUnavailable, match="dubble"):
        cuda.compiled("sm_90")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_they_compile_with_nvcc(architecture: str, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++20", f"-arch={architecture}", "-fmad=false", "-cubin"]
    warnings = ["-Werror", "all-warnings"]
    done = subprocess.run(
        [*command, *warnings, "-o", tmp_path / "kernels.cubin", cuda.SOURCES / "kernels.cu"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernels.cubin").stat().st_size > 0


def test_a_run_is_laid_out_as_the_kernels_read_it() -> None:
    """Its pointers first, each of 8 bytes: test_runs.py compares the sizes with the compiler's."""
    pointers = [name for name, kind in cuda.Run._fields_ if kind is cuda.ctypes.c_void_p]
    assert [getattr(cuda.Run, name).offset for name in pointers] == list(range(0, 8 * 16, 8))
