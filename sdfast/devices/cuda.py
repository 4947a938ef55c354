"""One NVIDIA GPU, by its driver alone: memory, a stream, events, graphs, and the kernels that
native/kernels.cu has, compiled for the GPU at hand when it is first used.

All work goes to one stream, in order: what is enqueued later sees what was enqueued before.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BackendUnavailable, EngineError
from ..tensors import Tensor

SOURCES = Path(__file__).parent.parent / "native"
KERNELS = ("step", "sum_up", "find_factors", "advance")
_OBJECT = "kernels.cubin"

Keep = Callable[[Mapping[str, str], Callable[[Path], None]], Path | None]
"""keep(key, build): the folder of what was compiled under that key, kept from one start to the next
and filled by build(folder) where there is none yet; None where nothing can be kept."""


class Run(ctypes.Structure):
    """What the kernels touch: the struct of that name in native/kernels.cu."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("words", "starts", "counter", "slots", "answer", "latent", "timestep", "time"),
                *("table", "draws", "result", "seeds", "guidance", "sums", "factors"),
                "mask",
            )
        ),
        ("prediction", ctypes.c_uint32),
        *(
            (name, ctypes.c_int64)
            for name in ("image", "plane", "input", "images", "rows", "time_size", "timesteps")
        ),
    )


def reason_unusable() -> str | None:
    """None where there is a GPU that can be used, else why not."""
    try:
        driver = _driver()
    except ImportError as error:
        return f'the CUDA driver\'s bindings are missing ({error}): pip install "sdfast[cuda]"'
    try:
        _checked(driver.cuInit(0))
        count = _checked(driver.cuDeviceGetCount())
    except RuntimeError:  # the bindings' own
        return "no NVIDIA driver is found: use device cpu"
    except EngineError as error:
        return f"the NVIDIA driver cannot be used ({error}): use device cpu"
    return None if count else "the NVIDIA driver finds no GPU: use device cpu"


def model(number: int) -> str:
    """What its maker calls a GPU."""
    driver = _driver()
    name: bytes = _checked(driver.cuDeviceGetName(128, _checked(driver.cuDeviceGet(number))))
    return name.split(b"\0")[0].decode()


class Memory:
    """Bytes of a GPU, or pinned bytes of the host, freed when nothing refers to them."""

    def __init__(self, pointer: int, free: Callable[[int], object]) -> None:
        self.pointer, self._free = pointer, free

    def __del__(self) -> None:
        self._free(self.pointer)


class Graph:
    """Work that was captured, to be enqueued at once."""

    def __init__(self, driver: ModuleType, executable: Any, stream: Any) -> None:
        self._driver, self._executable, self._stream = driver, executable, stream

    def launch(self) -> None:
        _checked(self._driver.cuGraphLaunch(self._executable, self._stream))

    def __del__(self) -> None:
        self._driver.cuGraphExecDestroy(self._executable)


class Event:
    """A place in the stream's order."""

    def __init__(self, driver: ModuleType, stream: Any) -> None:
        self._driver = driver
        flags = driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
        self._event = _checked(driver.cuEventCreate(flags))
        _checked(driver.cuEventRecord(self._event, stream))

    def wait(self) -> None:
        """Until all work before it is done."""
        _checked(self._driver.cuEventSynchronize(self._event))

    def __del__(self) -> None:
        self._driver.cuEventDestroy(self._event)


class Cuda:
    """A GPU by its number, from 0. Raises BackendUnavailable where there is none.

    keep: where the compiled kernels are kept
    """

    def __init__(self, number: int = 0, keep: Keep | None = None) -> None:
        if reason := reason_unusable():
            raise BackendUnavailable(reason)
        self.number, self._driver = number, _driver()
        driver = self._driver
        if number >= _checked(driver.cuDeviceGetCount()):
            raise BackendUnavailable(f"there is no GPU {number}: use a lower number")
        self._device = _checked(driver.cuDeviceGet(number))
        # The primary context is the one that other libraries use too, so memory is common.
        _checked(driver.cuCtxSetCurrent(_checked(driver.cuDevicePrimaryCtxRetain(self._device))))
        self._stream = _checked(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.stream = int(self._stream)
        self._kernels = self._load(keep)

    @property
    def name(self) -> str:
        """What its maker calls it."""
        return model(self.number)

    @property
    def architecture(self) -> str:
        """As compilers name it: sm_90."""
        kinds = self._driver.CUdevice_attribute
        major, minor = (
            _checked(self._driver.cuDeviceGetAttribute(kind, self._device))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        return f"sm_{major}{minor}"

    def free(self) -> int:
        """Bytes of its memory that nobody uses."""
        free, _ = _checked(self._driver.cuMemGetInfo())
        return int(free)

    def empty(self, shape: Sequence[int], dtype: str) -> Tensor:
        """Uninitialised memory of the GPU. Raises EngineError where there is none left."""
        driver, size = self._driver, _bytes(shape, dtype)
        pointer = _checked(driver.cuMemAlloc(size), "a smaller picture or batch needs less memory")
        memory = Memory(int(pointer), driver.cuMemFree)
        return Tensor.of_memory(memory.pointer, shape, dtype, memory, self.number)

    def pinned(self, shape: Sequence[int], dtype: str) -> Tensor:
        """Uninitialised memory of the host that the GPU copies from and to by itself."""
        driver = self._driver
        pointer = _checked(driver.cuMemHostAlloc(_bytes(shape, dtype), 0))
        memory = Memory(int(pointer), driver.cuMemFreeHost)
        return Tensor.of_memory(memory.pointer, shape, dtype, memory)

    def upload(self, target: Tensor, source: Tensor) -> None:
        """Enqueues target = source, which is pinned; both as long as the source."""
        _checked(
            self._driver.cuMemcpyHtoDAsync(
                target.pointer, source.pointer, source.nbytes, self._stream
            )
        )

    def download(self, target: Tensor, source: Tensor) -> None:
        """Enqueues target = source, of which target is pinned."""
        _checked(
            self._driver.cuMemcpyDtoHAsync(
                target.pointer, source.pointer, source.nbytes, self._stream
            )
        )

    def launch(self, kernel: str, blocks: int, threads: int, run: Run, row: int) -> None:
        """Enqueues a kernel, one of KERNELS."""
        number = ctypes.c_uint32(row)
        arguments = (ctypes.c_void_p * 2)(ctypes.addressof(run), ctypes.addressof(number))
        _checked(
            self._driver.cuLaunchKernel(
                self._kernels[kernel],
                *(blocks, 1, 1),
                *(threads, 1, 1),
                0,
                self._stream,
                ctypes.addressof(arguments),
                0,
            )
        )

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """What `enqueue` enqueues, as a graph; nothing of it is run."""
        driver = self._driver
        # Relaxed: engines may ask the driver things that have nothing to do with the stream.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        _checked(driver.cuStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        except BaseException:
            driver.cuStreamEndCapture(self._stream)
            raise
        graph = _checked(driver.cuStreamEndCapture(self._stream))
        try:
            executable = _checked(driver.cuGraphInstantiate(graph, 0))
        finally:
            driver.cuGraphDestroy(graph)
        _checked(driver.cuGraphUpload(executable, self._stream))
        return Graph(driver, executable, self._stream)

    def mark(self) -> Event:
        """The present end of the stream."""
        return Event(self._driver, self._stream)

    def synchronize(self) -> None:
        """Waits until the stream is empty."""
        _checked(self._driver.cuStreamSynchronize(self._stream))

    def _load(self, keep: Keep | None) -> dict[str, Any]:
        driver, architecture = self._driver, self.architecture
        key = {
            "kernels": hashlib.sha256(b"".join(_sources().values())).hexdigest(),
            "backend": "nvrtc",
            "version": ".".join(map(str, _checked(_nvrtc().nvrtcVersion()))),
            "device": architecture,
        }
        made: list[bytes] = []

        def build(folder: Path) -> None:
            made.append(compiled(architecture))
            (folder / _OBJECT).write_bytes(made[0])

        folder = keep(key, build) if keep is not None else None
        if folder is None and not made:
            made.append(compiled(architecture))
        binary = made[0] if made else (folder / _OBJECT).read_bytes()  # type: ignore[operator]
        module = _checked(driver.cuModuleLoadData(binary))
        return {
            name: _checked(driver.cuModuleGetFunction(module, name.encode())) for name in KERNELS
        }


def compiled(architecture: str) -> bytes:
    """The kernels as machine code of a GPU architecture, as sm_90. Needs no GPU.

    Raises BackendUnavailable where CUDA's compiler is missing or does not know the architecture.
    """
    try:
        nvrtc = _nvrtc()
    except ImportError as error:
        raise BackendUnavailable(
            f'CUDA\'s compiler is missing ({error}): pip install "sdfast[cuda]"'
        ) from error
    sources = _sources()
    headers = [name for name in sources if name.endswith(".h")]
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            sources["kernels.cu"],
            b"kernels.cu",
            len(headers),
            [sources[name] for name in headers],
            [name.encode() for name in headers],
        )
    )
    # Without fused multiply-add, sums come out as on every CPU.
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++20", b"--fmad=false"]
    try:
        _checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
    except EngineError as error:
        said = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, said)
        lines = said.decode(errors="replace").strip("\0 \n").splitlines()
        raise BackendUnavailable(
            f"the kernels cannot be compiled for {architecture} ({(lines or [str(error)])[0]}): "
            "install CUDA's compiler of a version that knows the GPU"
        ) from error
    binary: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, binary))
    return binary


def _sources() -> dict[str, bytes]:
    return {name: (SOURCES / name).read_bytes() for name in ("kernels.cu", "formulas.h")}


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * {"f32": 4, "f16": 2, "i32": 4, "i64": 8, "u8": 1}[dtype]


def _driver() -> ModuleType:
    return import_module("cuda.bindings.driver")


def _nvrtc() -> ModuleType:
    return import_module("cuda.bindings.nvrtc")


def _checked(answer: tuple[Any, ...], advice: str = "see `sdfast doctor`") -> Any:
    """What a function of CUDA returned beside its error, which is raised as ours."""
    code, *values = answer
    if int(code) != 0:
        raise EngineError(f"CUDA failed ({code.name}): {advice}")
    return values[0] if len(values) == 1 else tuple(values)
