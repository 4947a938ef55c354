"""The worker, with a fault that a test asks for: python faulty_worker.py FAULT FD."""

import math
import os
import sys
import time
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sdfast import images
from sdfast.backends import onnxruntime
from sdfast.backends.onnxruntime import OnnxRuntimeEngine
from sdfast.devices.together import Together
from sdfast.errors import EngineError
from sdfast.pipeline import Pipeline
from sdfast.service import worker


def once() -> bool:
    """Whether it has not happened before, in any worker."""
    try:
        os.close(os.open(os.environ["SDFAST_FAULT_ONCE"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


asked: list[str] = []  # prompts, the golden picture's left out


def watched() -> None:
    drawing = worker.Worker._drawing

    def noted(self: Any, drawn: Pipeline, job: str, said: Mapping[str, Any]) -> Any:
        asked.append(said["request"]["prompt"])
        return drawing(self, drawn, job, said)

    worker.Worker._drawing = noted  # type: ignore[method-assign]


def before_engines(happen: Any, network: str = "") -> None:
    """Calls happen() before an engine whose file has that in its name runs for a request."""
    run = OnnxRuntimeEngine._run

    def each(self: OnnxRuntimeEngine, session: Any, binding: Any) -> None:
        if asked and network in self._file.stem:
            happen()
        run(self, session, binding)

    OnnxRuntimeEngine._run = each  # type: ignore[method-assign]


def no_numbers(network: str) -> None:
    """What the network writes for requests whose prompt says "nan" is not finite."""
    rows = OnnxRuntimeEngine.run_rows

    def each(self: OnnxRuntimeEngine, tensors: Mapping[str, Any], alone: bool) -> None:
        rows(self, tensors, alone)
        if asked and "nan" in asked[-1] and network in self._file.stem:
            for name in self.outputs:
                values = memoryview(tensors[name]).cast("B").cast("f")
                values[:] = array("f", [math.nan]) * len(values)

    OnnxRuntimeEngine.run_rows = each  # type: ignore[method-assign]


def broken() -> None:
    """From the first request on nothing runs in this process; the next worker is whole."""
    global poisoned
    if once():
        poisoned = True
    if poisoned:
        raise EngineError("unet.onnx failed") from RuntimeError("an illegal memory access")


poisoned = False


def keeps_all(bytes_of_files: int) -> None:
    """Keeps networks of any size in the store; files may have so many bytes, 0 for any."""
    onnxruntime._WORTH_KEEPING = 0
    if bytes_of_files:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_files, bytes_of_files))


def die() -> None:
    if once():
        os.kill(os.getpid(), 9)


def hang() -> None:
    if once():
        time.sleep(600)


def poison() -> None:
    if "poison" in asked:
        os.kill(os.getpid(), 9)


def little_memory() -> None:
    make = Together.make

    def limited(self: Together, calls: Sequence[Any], alone: bool) -> None:
        if len(calls) > 1:
            raise EngineError("unet.onnx failed (out of memory)")
        make(self, calls, alone)

    Together.make = limited  # type: ignore[method-assign]


def other_pictures(spoil: Any) -> None:
    made = images.from_pixels

    def spoiled(pixels: Any) -> list[Image.Image]:
        return [spoil(image) for image in made(pixels)]

    images.from_pixels = spoiled


def blank(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size) if asked else image


drawn = 0


def garbage(image: Image.Image) -> Image.Image:
    global drawn
    drawn += 1
    if drawn > 2 and once():
        return Image.effect_noise(image.size, 90).convert("RGB")
    return image


def main(fault: str, descriptor: int) -> None:
    watched()
    kind, _, stage = fault.partition(":")
    if kind == "memory":
        little_memory()
    elif kind == "nan":
        no_numbers(stage)
    elif kind == "keep":
        keeps_all(int(stage))
    elif kind == "gone" and Path(os.environ["SDFAST_FAULT_ONCE"]).exists():
        sys.exit("cannot be started")  # once it has died
    elif kind in ("blank", "garbage"):
        other_pictures({"blank": blank, "garbage": garbage}[kind])
    else:
        happen = {"die": die, "gone": die, "hang": hang, "poison": poison, "broken": broken}[kind]
        before_engines(happen, stage)
    worker.main(descriptor)


if __name__ == "__main__":
    assert Path(__file__).name == "faulty_worker.py"
    main(sys.argv[1], int(sys.argv[2]))
