"""PyTorch on an NVIDIA GPU or the CPU.

Networks with convolutions are compiled by AOTInductor for the shapes that they are bound to, once
on a machine: what is kept are kernels and the order of their launches; weights stay in the bundle,
and are inputs of the program (torch_lowering.py makes it of the graph). The others, which run once
a request, run kernel by kernel. So does everything where there is no store to keep it in, since a
compilation takes longer than a picture.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import cpu
from ..devices.cuda import Cuda
from ..errors import BackendUnavailable, EngineError
from ..tensors import Tensor
from . import Options, first_line, fitting, weights_of

if TYPE_CHECKING:  # it imports PyTorch
    from .torch_network import Network

_PACKAGE = "network.pt2"
_SHAPES = 2  # compiled forms that an engine keeps: with the unguided rows and without
_BF16 = {"avx512_bf16", "amx_bf16"}

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
Program = Callable[..., Sequence[Any]]
"""program(*inputs, *weights): the outputs, in order."""


def reason_unusable(device: str = "cpu") -> str | None:
    """None where PyTorch can be imported, compile, and use the device, else why not."""
    try:
        torch = import_module("torch")
        import_module("onnx")
    except (ImportError, OSError) as error:
        return f'PyTorch or onnx cannot be imported ({error}): pip install "sdfast[torch]"'
    if shutil.which(_compiler()) is None:
        return (
            f"PyTorch compiles networks with {_compiler()}, which is missing: install it, or name "
            "another C++ compiler in CXX"
        )
    if device == "cuda" and not torch.cuda.is_available():
        if torch.version.cuda is None:
            return f"PyTorch {torch.__version__} is built without CUDA: install a build with it"
        return f"PyTorch {torch.__version__} finds no GPU: see whether its CUDA suits the driver"
    return None


def precision(asked: str, device: str = "cpu") -> str:
    """What `asked` means on the device. Raises BackendUnavailable where it cannot compute in it."""
    if device == "cuda":
        if asked == "bf16" and not _gpu_has_bf16():
            raise BackendUnavailable("this GPU does not compute in bfloat16: use --precision fp16")
        return "fp16" if asked == "auto" else asked
    if asked == "fp16":
        raise BackendUnavailable("no CPU is quick in float16: use --precision bf16 or fp32")
    has_bf16 = not _BF16.isdisjoint(cpu.features())
    if asked == "bf16" and not has_bf16:
        raise BackendUnavailable(
            "this CPU does not compute in bfloat16 (AVX-512 BF16 or AMX): use --precision fp32"
        )
    return ("bf16" if has_bf16 else "fp32") if asked == "auto" else asked


def open(file: Path, options: Options) -> TorchEngine:  # noqa: A001
    """The network in `file`, to be compiled when it is bound."""
    return TorchEngine(file, options)


class TorchEngine:
    """A network, its weights on the device, and what it was last compiled for.

    On a GPU all of it goes to the pipeline's stream, and the memory between inputs and outputs
    comes from a pool that nothing else takes from: a graph that captures a run holds its addresses.
    """

    def __init__(self, file: Path, options: Options) -> None:
        from . import torch_lowering

        device = "cpu" if options.gpu is None else "cuda"
        found = precision(options.precision, device)
        weights_of(file)  # whether they are all inside of its folder
        self._file, self._options = file, options
        self._network = torch_lowering.lowered(file, found, _of_pixels(found))
        self._precision = found
        self.inputs, self.outputs = self._network.inputs, self._network.outputs
        self.capturable = options.gpu is not None
        self._weights: list[Any] = []
        self._compiled: dict[Shapes, Program] = {}
        self._program: Program | None = None
        self._bound: Mapping[str, Any] = {}
        self._pool: Any = None

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        torch = import_module("torch")
        # The views hold the memory that they are of.
        views = {n: torch.from_dlpack(t) for n, t in fitting(self, tensors).items()}
        with self._failing():
            if self._program is None:
                self._read()
            self._program = self._for([views[name] for name in self.inputs])
        self._bound = views

    def _read(self) -> None:
        from . import torch_network

        gpu = self._options.gpu
        with self._device():
            place = "cpu" if gpu is None else f"cuda:{gpu.number}"
            replaced = self._options.replaced
            values = replaced() if replaced is not None else {}
            self._weights = list(torch_network.read(self._network, place, values).values())
            if gpu is not None:
                gpu.synchronize()  # runs may come on another stream

    def _for(self, inputs: list[Any]) -> Program:
        """The program for inputs of these shapes; of what was compiled before the latest is
        kept."""
        if self._options.keep is None or not self._network.convolves:
            return _program(self._network)
        key = tuple(zip(self.inputs, (tuple(x.shape) for x in inputs), strict=True))
        if key in self._compiled:
            self._compiled[key] = self._compiled.pop(key)  # the latest comes last
            return self._compiled[key]
        kept = 1 if self._options.low_memory else _SHAPES
        while len(self._compiled) >= kept:
            self._compiled.pop(next(iter(self._compiled)))
        with self._device():
            self._compiled[key] = self._compile(key, inputs)
        return self._compiled[key]

    def _compile(self, shapes: Shapes, inputs: list[Any]) -> Program:
        assert self._options.keep is not None
        threads = self._options.threads or cpu.cores()
        made: list[Program] = []

        def build(folder: Path) -> None:
            with tempfile.TemporaryDirectory() as temporary:
                file = Path(temporary) / _PACKAGE
                _package(self._network, [*inputs, *self._weights], file, threads)
                made.append(_loaded(file, self._options.gpu))
                shutil.copyfile(file, folder / _PACKAGE)

        folder = self._options.keep(
            {
                "backend": "torch",
                "version": str(import_module("torch").__version__),
                "device": _description(self._options.gpu, threads),
                "precision": self._precision,
                "shapes": repr(shapes),
                "lowering": _digest(),
            },
            build,
        )
        if folder is not None and not made:
            return _loaded(folder / _PACKAGE, self._options.gpu)
        if not made:  # the store cannot be written
            with tempfile.TemporaryDirectory() as temporary:
                build(Path(temporary))
        return made[0]

    def run(self, stream: int = 0) -> None:
        assert self._program is not None
        with self._failing(), self._device(stream), self._memory():
            made = self._program(*(self._bound[name] for name in self.inputs), *self._weights)
            for name, value in zip(self.outputs, made, strict=True):
                if value.shape != self._bound[name].shape:
                    raise RuntimeError(f"{name} is {tuple(value.shape)}")
                self._bound[name].copy_(value)

    def _device(self, stream: int | None = None) -> AbstractContextManager[None]:
        """PyTorch on the engine's device; on a GPU, on that stream or the pipeline's."""
        gpu = self._options.gpu
        if gpu is None:
            return _on_threads(self._options.threads or cpu.cores())
        return _on_stream(gpu.number, gpu.stream if stream is None else stream)

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """What PyTorch allocates on a GPU meanwhile comes from the engine's pool.

        torch.cuda.use_mem_pool: allocations of this thread. Freed ones go back to the pool, and no
        others are served of it, so that runs of one stream, captured or not, may share addresses.
        """
        if self._options.gpu is None:
            yield
            return
        cuda = import_module("torch.cuda")
        if self._pool is None:
            self._pool = cuda.MemPool()
        with cuda.use_mem_pool(self._pool, self._options.gpu.number):
            yield

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            raise EngineError(
                f"{self._file.name} failed ({first_line(error)}): a smaller picture or fewer "
                "images need less memory"
            ) from error

    def close(self) -> None:
        self._program, self._pool = None, None
        self._compiled.clear()
        self._weights, self._bound = [], {}


def _program(network: Network) -> Program:
    """The network, kernel by kernel."""
    from . import torch_network

    names = (*network.inputs, *network.weights)
    return lambda *tensors: torch_network.run(network, dict(zip(names, tensors, strict=True)))


def _package(network: Network, example: list[Any], file: Path, threads: int) -> None:
    """Compiles the network for tensors like these, on their device, into a file.

    Raises BackendUnavailable where that fails.
    """
    torch, inductor = import_module("torch"), import_module("torch._inductor")
    module = torch.nn.Module()
    module.forward = _program(network)
    settings = {"cpp.threads": threads}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's of its own parts
            exported = torch.export.export(module, tuple(example), strict=False)
            inductor.aoti_compile_and_package(
                exported, package_path=str(file), inductor_configs=settings
            )
    except Exception as error:  # of many kinds: of compilers, Triton, missing headers of CUDA
        raise BackendUnavailable(
            f"PyTorch cannot compile a network ({first_line(error)}): use another backend, or see "
            "`sdfast doctor`"
        ) from error


def _loaded(file: Path, gpu: Cuda | None) -> Program:
    inductor = import_module("torch._inductor")
    # "Single threaded" leaves out the events by which threads share a program: they cannot be
    # captured.
    number = -1 if gpu is None else gpu.number
    program: Program = inductor.aoti_load_package(
        str(file), run_single_threaded=True, device_index=number
    )
    return program


@contextmanager
def _on_threads(threads: int) -> Iterator[None]:
    torch = import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _on_stream(number: int, stream: int) -> Iterator[None]:
    """On a GPU, work goes to that stream; 0 is the default one."""
    cuda = import_module("torch.cuda")
    with cuda.device(number):
        # ExternalStream(0) would be a new stream.
        own = cuda.ExternalStream(stream, number) if stream else cuda.default_stream(number)
        with cuda.stream(own):
            yield


def _of_pixels(found: str) -> str:
    """What autoencoders compute in: float16 ends at 65504, which SDXL's decoder goes beyond;
    bfloat16 does not, and a pixel is one of 256."""
    if found != "fp16":
        return found
    return "bf16" if _gpu_has_bf16() else "fp32"


def _gpu_has_bf16() -> bool:
    return bool(import_module("torch").cuda.is_bf16_supported(including_emulation=False))


def _description(gpu: Cuda | None, threads: int) -> str:
    """What is compiled for: on a CPU the number of threads is in the loops."""
    if gpu is None:
        return f"{cpu.model()}, {', '.join(cpu.features())}, threads: {threads}"
    return f"{gpu.name}, {gpu.architecture}"


def _digest() -> str:
    """Of what makes programs of graphs: with another one they are others."""
    names = ("torch_lowering.py", "torch_network.py", "torch_operators.py")
    files = [Path(__file__).with_name(name) for name in names]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _compiler() -> str:
    """As torch._inductor.config.cpp.cxx."""
    usual = {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    return os.environ.get("CXX", usual)
