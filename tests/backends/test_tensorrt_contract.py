"""The TensorRT backend beside the real bindings: every name, signature and enum member that it uses
is theirs. Nothing of TensorRT runs here; benchmarks/trt_check.py is for machines where it does."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from backends import bindings, uses
from backends.bindings import Bindings, Signature

import sdfast.backends
from sdfast.backends import tensorrt_library

FOLDER = Path(sdfast.backends.__file__).parent
# What runs engines, and what builds and refits them from ONNX, of which the lean runtime knows
# nothing.
RUNTIME = ("tensorrt.py", "tensorrt_library.py")
BUILDER = ("tensorrt_build.py", "tensorrt_progress.py", "tensorrt_refit.py")
OF_10 = "tensorrt_cu12_bindings=={}"
GUARDED = ("IAttention", "ATTENTION_INPUT", "attention", "SAME_COMPUTE_CAPABILITY")
"""What the backend asks for before it uses it, and the oldest version lacks."""


def trees(*files: str) -> dict[str, ast.Module]:
    return {name: ast.parse((FOLDER / name).read_text(encoding="utf-8")) for name in files}


def of_10(version: str, folder: Path) -> Bindings:
    """Fetched, since two versions of a package cannot be installed side by side."""
    wheel = OF_10.format(version)
    options = ["--no-deps", "--quiet", "--dest", str(folder)]
    fetch = [sys.executable, "-m", "pip", "download", *options, wheel]
    done = subprocess.run(fetch, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip(f"{wheel} cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", next(folder.glob("*.whl")), folder], check=True
    )
    file = folder / "tensorrt_bindings" / "tensorrt.so"
    return bindings.of_file(file, bindings.stand_ins(folder, 10))


def test_everything_that_is_used_is_there_in_11(of_11: Bindings) -> None:
    found = uses.find(trees(*RUNTIME, *BUILDER), of_11)
    assert found.problems == []
    assert len(found.uses) > 80


@pytest.mark.slow  # fetches it
def test_everything_that_is_used_is_there_in_10(tmp_path: Path) -> None:
    late = of_10("10.16.1.11", tmp_path)
    assert uses.find(trees(*RUNTIME, *BUILDER), late).problems == []


@pytest.mark.slow  # fetches it
def test_the_oldest_version_lacks_only_what_is_asked_for(tmp_path: Path) -> None:
    assert tensorrt_library.OLDEST == (10, 1)
    problems = uses.find(trees(*RUNTIME, *BUILDER), of_10("10.1.0", tmp_path)).problems
    assert problems
    assert all(any(word in problem for word in GUARDED) for problem in problems), problems


def test_what_runs_engines_is_in_the_lean_runtime(of_lean: Bindings) -> None:
    found = uses.find(trees(*RUNTIME), of_lean)
    assert found.problems == []
    assert len(found.uses) > 20
    builds = uses.find(trees(*RUNTIME, *BUILDER), of_lean).problems
    assert any("trt has no Builder" in problem for problem in builds)


def test_no_use_escapes_the_check(of_11: Bindings) -> None:
    sources = trees(*RUNTIME, *BUILDER)
    found = uses.find(sources, of_11)
    assert uses.unfollowed(sources, found, of_11) == set()


def test_a_misspelt_name_or_another_argument_is_noticed_everywhere(of_11: Bindings) -> None:
    sources = trees(*RUNTIME, *BUILDER)
    found = uses.find(sources, of_11)
    missed = []
    for what, use in uses.mutations(found):
        if isinstance(use, ast.Call):
            given = use.args[:]
            use.args += [ast.Constant(0)] * 5  # some methods take one more or two
            wrong = uses.find(sources, of_11).problems
            use.args[:] = given
        else:
            name = getattr(use.node, use.field)
            setattr(use.node, use.field, f"{name}s")
            wrong = uses.find(sources, of_11).problems
            setattr(use.node, use.field, name)
        if not wrong:
            missed.append(what)
    assert missed == []
    assert uses.find(sources, of_11).problems == []


WRONG = {
    "trt = library()\ntrt.Bilder": "trt has no Bilder",
    "trt = library()\ntrt.Runtime()": "Runtime.__init__ does not take 0 arguments",
    "trt = library()\ntrt.Runtime(log()).deserialise_cuda_engine(b'')": "has no deserialise",
    "trt = library()\ntrt.DataType.FP16": "DataType has no FP16",
    "trt = library()\ntrt.ILogger.Severity.FATAL": "ILogger.Severity has no FATAL",
    "def f(engine: trt.ICudaEngine):\n    engine.num_layers = 1": "num_layers cannot be set",
    "def f(config: trt.IBuilderConfig):\n    config.max_workspace = 1": "max_workspace cannot be",
    "def f(config: trt.BuilderConfig):\n    pass": "trt has no BuilderConfig",
    "def f(profile: trt.IOptimizationProfile):\n    profile.set_shape('x', min=(1,), opt=(1,))": (
        "IOptimizationProfile.set_shape does not take 1 arguments and ['min', 'opt']"
    ),
    "def f(n: trt.INetworkDefinition):\n    n.get_layer(0).kind": "ILayer has no kind",
    "trt = library()\nclass L(trt.ILogger):\n    def logs(self): ...": "L has no log",
    "trt = library()\nclass L(trt.ILogger):\n    def log(self, severity): ...": "L.log takes",
    "trt = library()\nhasattr(trt, 'IAtention')": "trt has no IAtention",
    "trt = library()\nhasattr(trt.DataType, 'FP16')": "DataType has no FP16",
}


@pytest.mark.parametrize("code", WRONG)
def test_the_check_knows_mistakes_of_each_kind(code: str, of_11: Bindings) -> None:
    problems = uses.find({"code.py": ast.parse(code)}, of_11).problems
    assert any(WRONG[code] in problem for problem in problems), problems


def test_signatures_are_read_from_docstrings() -> None:
    text = """f(*args, **kwargs)
Overloaded function.

1. f(self: tensorrt.tensorrt.X, name: str, kind: A.B = <B.C: 0>) -> tensorrt.tensorrt.ICudaEngine

Words f(self) about it.

2. f(self: tensorrt.tensorrt.X, sides: tuple[int, int]) -> bool
"""
    assert bindings.signatures("f", text) == (
        Signature(("name", "kind"), frozenset({"kind"}), "ICudaEngine"),
        Signature(("sides",), frozenset(), "bool"),
    )


def test_nothing_else_imports_tensorrt() -> None:
    """So nothing else has to be looked at."""
    known = {FOLDER / name for name in (*RUNTIME, *BUILDER)}
    for file in FOLDER.parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file not in known:
            assert "library()" not in text, file
            assert "import tensorrt as" not in text, file
    assert tensorrt_library.MAJORS == (10, 11)
