"""TensorRT itself: the module, what it says when something fails, and its errors as ours.

Whatever is of TensorRT is called `trt`, or annotated with `trt.…`, wherever it is used: by that
tests/backends/test_tensorrt_contract.py compares each use with the bindings, since no machine of
ours without a GPU can run them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import BundleError, EngineError, SdfastError

MAJORS = (10, 11)
OLDEST = (10, 1)  # the first whose contexts are told the size of the memory they are given


def library() -> Any:
    return import_module("tensorrt")


def version() -> str:
    trt = library()
    return str(trt.__version__)


def reason_unusable() -> str | None:
    """None where TensorRT can be imported in a version that is known, else why not."""
    try:
        found = version()
    except ImportError as error:
        return f'TensorRT cannot be imported ({error}): pip install "sdfast[tensorrt]"'
    numbers = tuple(int(part) for part in found.split(".")[:2])
    if numbers[0] not in MAJORS or numbers < OLDEST:
        return (
            f"TensorRT is {found}; it must be {'.'.join(map(str, OLDEST))} or later of "
            f'{" or ".join(map(str, MAJORS))}: pip install "sdfast[tensorrt]"'
        )
    return None


@cache
def log() -> Any:
    """The logger of this process, which TensorRT wants to be one: it keeps what errors say."""
    trt = library()

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._lock, self._said = Lock(), list[str]()

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                with self._lock:  # builders log from threads of their own
                    self._said.append(msg)

        def forget(self) -> None:
            """What follows belongs to what is done next."""
            with self._lock:
                self._said.clear()

        def reason(self) -> str:
            """The first error since then: what comes after it is mostly its consequence."""
            with self._lock:
                return self._said[0].strip() if self._said else "it gave no reason"

    return Log()


def failed(file: Path) -> SdfastError:
    """An engine of the network in `file` could not be opened, bound or run, for what TensorRT has
    just said."""
    return EngineError(
        f"{file.name} failed ({log().reason()}): a smaller picture or fewer images need less memory"
    )


def unusable(file: Path, reason: str) -> SdfastError:
    """TensorRT cannot make an engine of the network."""
    return BundleError(
        f"{file} cannot be compiled by TensorRT ({reason}): export the bundle with --backend "
        "tensorrt, or use another backend"
    )
