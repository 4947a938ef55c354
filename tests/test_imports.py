"""What `import sdfast` costs and loads, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "numpy", "onnxruntime", "PIL", "tokenizers", "transformers", "diffusers", "rich")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_loads_no_heavy_package() -> None:
    code = f"import sys, sdfast; print([m for m in {HEAVY} if m in sys.modules])"
    assert python(code) == "[]"


def test_import_is_quick() -> None:
    code = "import time; t = time.perf_counter(); import sdfast; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_a_picture_is_drawn_without_torch() -> None:
    code = (
        "import sys, sdfast; sdfast.load('demo')('a red star', steps=1);"
        "print([m for m in ('torch', 'transformers', 'diffusers', 'onnx') if m in sys.modules])"
    )
    assert python(code) == "[]"


def test_every_public_name_is_there() -> None:
    import sdfast

    assert all(getattr(sdfast, name) is not None for name in sdfast.__all__)
