"""An engine of a GPU, on tensors of the host: for what runs once a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..tensors import Tensor, TensorSpec
from .graphs import Gpu


class Network(Protocol):
    """What is needed of an engine."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    def bind(self, tensors: Mapping[str, Tensor], /) -> None: ...
    def run(self, stream: int = 0) -> None: ...
    def close(self) -> None: ...


class Staged:
    """The network between two copies. Each shape that it is bound to has memory of its own there.

    `run` returns when the outputs are written.
    """

    capturable = False

    def __init__(self, network: Network, gpu: Gpu) -> None:
        self.network, self._gpu = network, gpu
        self.inputs, self.outputs = network.inputs, network.outputs
        self._there: dict[tuple[object, ...], dict[str, Tensor]] = {}
        self._bound: Mapping[str, Tensor] = {}

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        self._bound = {name: tensors[name] for name in (*self.inputs, *self.outputs)}
        shapes = tuple(tensor.shape for tensor in self._bound.values())
        if shapes not in self._there:
            self._there[shapes] = {
                name: self._gpu.empty(tensor.shape, tensor.dtype)
                for name, tensor in self._bound.items()
            }
        self._device = self._there[shapes]
        self.network.bind(self._device)

    def run(self, stream: int = 0) -> None:
        for name in self.inputs:
            self._gpu.upload(self._device[name], self._bound[name])
        self.network.run(self._gpu.stream)
        for name in self.outputs:
            self._gpu.download(self._bound[name], self._device[name])
        self._gpu.synchronize()

    def close(self) -> None:
        self._there.clear()
        self._bound = {}
        self.network.close()
