"""What TensorRT's Python bindings declare: classes, enums and signatures, as their docstrings say.

The bindings' wheels need TensorRT's libraries to be imported, and a GPU to do anything. They are
looked at in a process of its own, with libraries that hold nothing but the names they want.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
FUNCTIONS = (  # of C, that the bindings take from them
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LOOK = """
import importlib.util, json, sys

def described(kind):
    found = {"members": list(getattr(kind, "__members__", {})), "bases": []}
    found |= {"methods": {}, "properties": {}}
    for base in kind.__mro__[1:]:
        if base.__module__ != "builtins" and not base.__module__.startswith("pybind11"):
            found["bases"].append(base.__qualname__)
    for name in dir(kind):
        value = getattr(kind, name)
        if name == "__init__" or not name.startswith("_"):
            if isinstance(value, property):
                found["properties"][name] = value.fset is not None
            elif callable(value) and not isinstance(value, type):
                found["methods"][name] = value.__doc__ or ""
    return found

def classes(of, prefix=""):
    for name, value in vars(of).items():
        if isinstance(value, type) and not name.startswith("_"):
            yield prefix + name, described(value)
            if prefix == "":
                yield from classes(value, name + ".")

module = sys.modules["looked_at"]
others = [n for n, v in vars(module).items() if not isinstance(v, type)]
json.dump({"classes": dict(classes(module)), "names": others}, sys.stdout)
"""
BY_FILE = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader({name!r}, {file!r})
spec = importlib.util.spec_from_file_location({name!r}, {file!r}, loader=loader)
sys.modules["looked_at"] = importlib.util.module_from_spec(spec)
loader.exec_module(sys.modules["looked_at"])
"""


@dataclass(frozen=True)
class Signature:
    """One overload: its parameters but self, those of them that have a default, what it returns."""

    parameters: tuple[str, ...]
    optional: frozenset[str]
    returns: str


@dataclass(frozen=True)
class Kind:
    """A class or an enum. properties: whether each can be set; methods: their overloads"""

    members: frozenset[str] = frozenset()
    bases: tuple[str, ...] = ()
    properties: Mapping[str, bool] = field(default_factory=dict)
    methods: Mapping[str, tuple[Signature, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bindings:
    """kinds: by their names in the module, those within others as Outer.Inner; names: its others"""

    kinds: Mapping[str, Kind]
    names: frozenset[str]


def stand_ins(folder: Path, major: int) -> list[Path]:
    """Libraries of TensorRT's names and functions in which nothing happens."""
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    made = []
    for name in LIBRARIES:
        file = folder / f"lib{name}.so.{major}"
        soname = f"-Wl,-soname,{file.name}"
        subprocess.run(["gcc", "-shared", "-fPIC", soname, source, "-o", file], check=True)
        made.append(file)
    return made


def of_file(file: Path, libraries: list[Path]) -> Bindings:
    """The bindings in a package's extension module, and the constants that the package adds.

    libraries: loaded before, by whose names the module finds them
    """
    before = "import ctypes\n" + "".join(
        f"ctypes.CDLL({str(library)!r}, ctypes.RTLD_GLOBAL)\n" for library in libraries
    )
    name = f"tensorrt_bindings.{file.name.split('.')[0]}"
    found = looked_at(before + BY_FILE.format(name=name, file=str(file)))
    package = ast.parse((file.parent / "__init__.py").read_text(encoding="utf-8"))
    added = {
        target.id
        for node in package.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return Bindings(found.kinds, found.names | added)


def looked_at(imported: str) -> Bindings:
    """The bindings that Python code puts into sys.modules["looked_at"]."""
    done = subprocess.run(
        [sys.executable, "-c", imported + LOOK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    raw = json.loads(done.stdout)
    kinds = {
        name: Kind(
            frozenset(kind["members"]),
            tuple(kind["bases"]),
            kind["properties"],
            {method: signatures(method, text) for method, text in kind["methods"].items()},
        )
        for name, kind in raw["classes"].items()
    }
    return Bindings(kinds, frozenset(raw["names"]))


def signatures(name: str, text: str) -> tuple[Signature, ...]:
    """The overloads that pybind11 writes at the head of a docstring."""
    heads = re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((self.*)\) -> (.+)$", text, re.MULTILINE)
    return tuple(_signature(parameters, returns) for parameters, returns in heads)


def _signature(text: str, returns: str) -> Signature:
    parts = _split(text)[1:]  # but self
    names = [part.split(":")[0].strip() for part in parts]
    optional = {n for n, part in zip(names, parts, strict=True) if " = " in part}
    return Signature(tuple(names), frozenset(optional), short(returns))


def short(name: str) -> str:
    """A type's name within the module."""
    return re.sub(r"\b(?:\w+\.)*tensorrt(?:_lean)?\.(?=[A-Z])", "", name).strip()


def _split(text: str) -> list[str]:
    """At commas that are not within brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([<{") - (letter in ")]>}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
