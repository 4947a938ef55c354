"""TensorRT 10 and 11 on an NVIDIA GPU: engines that `sdfast build` made and the store keeps.

Networks run one after the other on the pipeline's stream, so that their activations share one block
of memory. A plan is code, which is why it is loaded from the store alone; and building takes
minutes, which is why none is built here.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

from .. import graph_tensors
from ..devices.cuda import Cuda
from ..errors import BackendUnavailable, BundleError
from ..tensors import Tensor, TensorSpec
from . import Options, fitting, tensorrt_library, tensorrt_refit
from .tensorrt_library import failed, library, log
from .tensorrt_plans import PLAN, Form, Host, Plan, Shape, listed, serving, stored

if TYPE_CHECKING:
    import tensorrt as trt


def reason_unusable(device: str = "cuda") -> str | None:
    """None where TensorRT can be imported in a version that is known, else why not."""
    if device != "cuda":
        return "TensorRT runs on NVIDIA GPUs alone: use --device cuda, or another backend"
    return tensorrt_library.reason_unusable()


def precision(asked: str, device: str = "cuda") -> str:
    """Always "fp32": TensorRT computes in the types that the graph has, float32 in TF32. Raises
    BackendUnavailable for another."""
    if asked in ("bf16", "fp16"):
        raise BackendUnavailable(
            "TensorRT computes in the types of the graph: export the bundle with --backend tensorrt"
            f" or --precision {asked}, and leave --precision out here"
        )
    return "fp32"


def open(file: Path, options: Options) -> TensorRtEngine:  # noqa: A001
    """The network in `file`, whose engines are loaded when shapes are bound that they take."""
    return TensorRtEngine(file, options)


def host(gpu: Cuda) -> Host:
    """What plans for this GPU are built with and for, here and now."""
    return Host(tensorrt_library.version(), gpu.name, gpu.architecture)


class TensorRtEngine:
    """A network with those of its engines that were needed so far.

    What was bound once stays on the GPU until `close`: a captured graph holds the addresses of an
    engine's weights and of its context's memory. So drop graphs before.
    """

    capturable = True

    def __init__(self, file: Path, options: Options) -> None:
        if options.gpu is None:
            raise BackendUnavailable(str(reason_unusable("cpu")))
        precision(options.precision)
        self._file, self._gpu, self._keep = file, options.gpu, options.keep
        self._replaced = options.replaced
        self.inputs, self.outputs = _specs(file)
        self._loaded: list[tuple[Plan, Loaded]] = []
        self._contexts: dict[tuple[Shape, ...], Context] = {}
        self._context: Context | None = None

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        bound = fitting(self, tensors)
        shapes = tuple(tuple(bound[name].shape) for name in self.inputs)
        if shapes not in self._contexts:
            self._contexts[shapes] = self._opened(dict(zip(self.inputs, shapes, strict=True)))
        self._context = self._contexts[shapes]
        self._context.bind(bound)

    def run(self, stream: int = 0) -> None:
        if self._context is None:
            raise ValueError(f"{self._file.name} is not bound")
        self._context.run(stream or self._gpu.stream)

    def close(self) -> None:
        self._gpu.synchronize()
        self._context = None
        self._contexts.clear()
        self._loaded.clear()

    def _opened(self, shapes: Mapping[str, Shape]) -> Context:
        here = host(self._gpu)
        plans = serving(listed(self._keep), shapes, here) if self._keep is not None else []
        for plan in plans:
            if (loaded := self._of(plan)) is not None:
                return loaded.context(shapes)
        wanted = ", ".join(f"{name} {'×'.join(map(str, s))}" for name, s in shapes.items())
        raise BackendUnavailable(
            f"the store has no engine of {self._file.name} for {wanted} on {here.gpu} with TensorRT"
            f" {here.version}: run `sdfast build BUNDLE --backend tensorrt`, with a --recipe whose "
            "profiles include it, or use another backend"
        )

    def _of(self, plan: Plan) -> Loaded | None:
        """The plan's engine, None where the store has lost it."""
        for known, loaded in self._loaded:
            if known == plan:
                return loaded
        folder = stored(self._keep, plan.key) if self._keep is not None else None
        if folder is None:
            return None
        with (
            (folder / PLAN).open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            loaded = Loaded(data, self._gpu, plan.form, self._file)
        if self._replaced is not None and (values := self._replaced()):
            tensorrt_refit.replace(loaded.engine, values, self._file)
        self._loaded.append((plan, loaded))
        return loaded


class Loaded:
    """An engine on a GPU. file: of the network that it is of."""

    def __init__(self, plan: bytes | mmap.mmap, gpu: Cuda, form: Form, file: Path) -> None:
        trt = library()
        log().forget()
        self._gpu, self._file = gpu, file
        self._runtime = trt.Runtime(log())
        # A version-compatible plan brings the runtime that it was built for.
        self._runtime.engine_host_code_allowed = form.version_compatible
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise failed(file)
        if form.stripped:
            tensorrt_refit.restore(self.engine, file)

    def context(self, shapes: Mapping[str, Shape]) -> Context:
        """A new one, for inputs of these shapes."""
        return Context(self.engine, shapes, self._gpu, self._file)


class Context:
    """An engine for one set of shapes.

    There is one for each, since a change of shapes takes effect at the next run with copies that no
    graph may capture. Its memory stays where it is: a graph goes on writing there.
    """

    def __init__(
        self, engine: trt.ICudaEngine, shapes: Mapping[str, Shape], gpu: Cuda, file: Path
    ) -> None:
        trt = library()
        log().forget()
        self._file = file
        self._context = engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._context is None:
            raise failed(file)
        taken = [self._context.set_input_shape(name, shape) for name, shape in shapes.items()]
        if not all(taken) or self._context.infer_shapes():
            raise failed(file)
        self._block = _activations(gpu).at_least(
            self._context.update_device_memory_size_for_shapes()
        )
        memory = self._block.memory
        self._context.set_device_memory(memory.pointer, memory.nbytes)
        self._bound: dict[str, Tensor] = {}

    def shape(self, name: str) -> Shape:
        """Of an input or output."""
        return tuple(self._context.get_tensor_shape(name))

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """tensors: of the engine's inputs and outputs, and no others."""
        log().forget()
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != self.shape(name):
                raise ValueError(f"{name} is {tensor.shape}; the engine has {self.shape(name)}")
            if not self._context.set_tensor_address(name, tensor.pointer):
                raise failed(self._file)
        self._bound = dict(tensors)  # it knows addresses alone: keep the memory alive

    def run(self, stream: int) -> None:
        log().forget()
        if not self._context.execute_async_v3(stream):
            raise failed(self._file)


class _Block:
    """Memory of activations, for as long as a context uses it."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory


class _Activations:
    """The block of memory that the contexts of a GPU share, which run one after the other.

    A context that needs more than the last block has brings a larger one. Those before keep theirs:
    graphs that were captured with it write there.
    """

    def __init__(self, gpu: Cuda) -> None:
        self._gpu = ref(gpu)
        self._last: ref[_Block] | None = None

    def at_least(self, size: int) -> _Block:
        block = self._last() if self._last is not None else None
        if block is None or block.memory.nbytes < size:
            gpu = self._gpu()
            assert gpu is not None, "who asks has it"
            block = _Block(gpu.empty((max(size, 1),), "u8"))
            self._last = ref(block)
        return block


_OF_GPUS: WeakKeyDictionary[Cuda, _Activations] = WeakKeyDictionary()


def _activations(gpu: Cuda) -> _Activations:
    return _OF_GPUS.setdefault(gpu, _Activations(gpu))


def _specs(file: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    try:
        ports = graph_tensors.ports(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be run ({error}): export the bundle again") from error
    inputs, outputs = (
        {
            name: TensorSpec(p.dtype, tuple(None if isinstance(s, str) else s for s in p.sides))
            for name, p in of.items()
        }
        for of in ports
    )
    return inputs, outputs
