"""The networks of a bundle as engines, each opened when it is first asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from . import backends, store
from .backends import Engine
from .bundle import Bundle, Network
from .devices.staged import Staged
from .networks import ONCE_A_REQUEST
from .tensors import TensorSpec

if TYPE_CHECKING:  # who uses none does not load NumPy for it
    from .loras.applied import Applied

_SMALL = 64 << 20  # bytes of weights


class Opened:
    """The engines of a bundle by the names of their networks."""

    def __init__(self, bundle: Bundle, backend: str, options: backends.Options) -> None:
        self.bundle, self.options = bundle, options
        self._backend = backend
        self._engines: dict[str, Engine] = {}
        self._staged: dict[str, Staged] = {}  # the same for all: their calls can be made as one
        self._others: dict[str, Opened] = {}
        self._plain: Opened | None = None
        self._loras: Applied | None = None
        self._own: frozenset[str] = frozenset()  # networks that are not as in `_plain`

    def with_loras(self, loras: Applied) -> Opened:
        """The same networks with LoRA: engines of its own for those that these change, and this
        one's for all others. Close it before this one."""
        opened = Opened(self.bundle, self._backend, self.options)
        opened._plain, opened._loras = self._plain or self, loras
        opened._own = frozenset(filter(loras.changes, self.bundle.manifest.networks))
        return opened

    def _shared(self, network: str) -> Opened | None:
        """Whose engine of that network is used instead of an own one."""
        return None if network in self._own else self._plain

    def __contains__(self, network: str) -> bool:
        """Whether the bundle has it."""
        return network in self.bundle.manifest.networks

    def __getitem__(self, network: str) -> Engine:
        """Its engine, kept compiled under the digests of all that it is made of."""
        if (shared := self._shared(network)) is not None:
            return shared[network]
        if network not in self._engines:
            manifest, options = self.bundle.manifest, self.options
            if self._loras is not None:
                options = replace(options, replaced=partial(self._loras.values, network))
            if (keep := options.keep) is not None:
                read = (manifest.networks[network].file, *manifest.networks[network].weights)
                made_of = {name: manifest.files[name] for name in read}
                options = replace(options, keep=lambda key, build: keep({**made_of, **key}, build))
            if options.throughput and network in ONCE_A_REQUEST and self._small(network):
                options = replace(options, threads=1)  # the other cores have rows to compute
            file = self.bundle.network(network)
            self._engines[network] = backends.open_engine(file, self._backend, options)
        return self._engines[network]

    def beside(self, bundle: str) -> Opened:
        """Those of another bundle, for the same backend, kept as long as these; with LoRA those
        that are beside the plain ones."""
        if self._plain is not None:
            return self._plain.beside(bundle)
        if bundle not in self._others:
            self._others[bundle] = Opened(store.load(bundle), self._backend, self.options)
        return self._others[bundle]

    def get(self, network: str) -> Engine | None:
        """The same; None where the bundle has none."""
        if network not in self:
            return None
        return self[network]

    def on_the_host(self, network: str) -> Engine:
        """Its engine, to be bound to tensors of the host wherever it runs."""
        engine, gpu = self[network], self.options.gpu
        if gpu is None:
            return engine
        if network not in self._staged or self._staged[network].network is not engine:
            self._staged[network] = Staged(engine, gpu)
        return self._staged[network]

    def inputs(self, *networks: str) -> dict[str, TensorSpec]:
        """What those of the networks read that the bundle has."""
        return {n: s for name in networks if name in self for n, s in self._of(name).inputs.items()}

    def tensors(self, *networks: str) -> dict[str, TensorSpec]:
        """What they read and write."""
        found: dict[str, TensorSpec] = {}
        for name in networks:
            if name in self:
                found |= {**self._of(name).inputs, **self._of(name).outputs}
        return found

    def _small(self, network: str) -> bool:
        """Whether it is computed as quickly by one core."""
        weights = self.bundle.manifest.networks[network].weights
        return sum((self.bundle.path / name).stat().st_size for name in weights) < _SMALL

    def _of(self, network: str) -> Network:
        return self.bundle.manifest.networks[network]

    def spare(self, *networks: str) -> None:
        """Closes those that are open, also beside these, where memory is to be spared: `bind` opens
        them again."""
        for other in self._others.values():
            other.spare(*networks)
        for name in networks if self.options.low_memory else ():
            if (shared := self._shared(name)) is not None:
                shared.spare(name)
            elif name in self._engines:
                self._engines[name].close()

    def close(self) -> None:
        """Closes all of them that are its own."""
        while self._others:
            self._others.popitem()[1].close()
        self._staged.clear()
        while self._engines:
            self._engines.popitem()[1].close()
