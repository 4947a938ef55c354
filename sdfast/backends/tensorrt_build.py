"""Builds TensorRT's engines of a network, and puts those that pass the gate into the store.

Precision is what the graph's types say (strongly typed, as TensorRT 11 knows no other way). What
the builder measured of kernels is kept in the store too, as one timing cache for all networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from .. import graph_tensors
from ..devices.cuda import Cuda, Keep
from ..errors import BackendUnavailable, EngineRefused, OutputError
from ..graph_tensors import Port
from ..records import parsed
from . import Engine, weights_of
from .acceptance import Place, Verdict, examples, judge
from .tensorrt import Loaded, host
from .tensorrt_library import library, log, unusable, version
from .tensorrt_plans import PLAN, Form, Plan, Profile, Shape, enlist, stored
from .tensorrt_progress import Phases, Tell, monitor

if TYPE_CHECKING:
    import tensorrt as trt

WORKSPACE = 4 << 30  # bytes that a kernel may ask for
AUX_STREAMS = 1
"""Streams beside the pipeline's that an engine may use: these networks are chains, and each stream
takes activations of its own."""
REPORT, _TIMINGS = "report.json", "timing.cache"


@dataclass(frozen=True)
class Shelf:
    """The store's ends. keep: as devices.cuda.Keep; renew: the same, writing an entry anew that is
    there."""

    keep: Keep
    renew: Keep

    def of(self, made_of: Mapping[str, str]) -> Shelf:
        """That of a network, by the digests of all that it is made of."""
        return Shelf(
            lambda key, build: self.keep({**made_of, **key}, build),
            lambda key, build: self.renew({**made_of, **key}, build),
        )


@dataclass(frozen=True)
class Network:
    """What is built.

    file: its graph; name, precision: as in the manifest
    words: of the vocabulary that its tokens are of
    portable: opens the portable path, an engine of the same graph, and says where it runs
    """

    file: Path
    name: str
    precision: str
    words: int
    portable: Callable[[], tuple[Engine, Place]]

    def ports(self) -> tuple[dict[str, Port], dict[str, Port]]:
        """Inputs and outputs. Raises BundleError for what is no graph, or points elsewhere."""
        weights_of(self.file)  # TensorRT opens whatever a graph names
        try:
            return graph_tensors.ports(self.file.read_bytes())
        except (OSError, ValueError) as error:
            raise unusable(self.file, str(error)) from error


@dataclass(frozen=True)
class Layers:
    """What the inspector says of an engine: its layers by kind, those that are a fused attention
    kernel, bytes of activations."""

    kinds: dict[str, int]
    attentions: int
    activations: int


@dataclass(frozen=True)
class Report:
    """Of a plan that was built. size: in bytes; seconds: that building took; verdict: the gate's"""

    size: int
    seconds: float
    layers: Layers
    verdict: Verdict


@dataclass(frozen=True)
class Outcome:
    """A plan with its report, or why it was refused."""

    plan: Plan
    report: Report | None
    refused: EngineRefused | None


def build(
    network: Network,
    profiles: Sequence[Profile],
    form: Form,
    gpu: Cuda,
    store: Shelf,
    made_of: Mapping[str, str],
    tell: Tell,
) -> Iterator[Outcome]:
    """The network's engines, one after the other; those that the store has are not built again.

    made_of: the digests of all that the network is made of
    Raises BundleError for a graph that TensorRT does not take, OutputError where the store cannot
    be written.
    """
    shelf, here = store.of(made_of), host(gpu)
    portable = _Once(network.portable)
    try:
        for profile in profiles:
            plan = Plan(profile, form, here)
            work = _Work(network, plan, gpu, store, portable, tell)
            try:
                folder = shelf.keep(plan.key, work.fill)
            except EngineRefused as refused:
                yield Outcome(plan, None, refused)
                continue
            if folder is None:
                raise OutputError(
                    "the store cannot be written: set SDFAST_HOME to a folder that can"
                )
            enlist(shelf.keep, shelf.renew, [plan])
            yield Outcome(plan, _report(folder), None)
    finally:
        portable.close()


def _report(folder: Path) -> Report:
    found: Report = parsed(Report, json.loads((folder / REPORT).read_text(encoding="utf-8")))
    return found


class _Once:
    """The portable path, opened when it is first needed: it takes as much memory as the engine."""

    def __init__(self, portable: Callable[[], tuple[Engine, Place]]) -> None:
        self._open = portable
        self._opened: tuple[Engine, Place] | None = None

    def __call__(self) -> tuple[Engine, Place]:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened[0].close()
            self._opened = None


@dataclass(frozen=True)
class _Work:
    """One engine on its way."""

    network: Network
    plan: Plan
    gpu: Cuda
    store: Shelf
    portable: _Once
    tell: Tell

    def fill(self, folder: Path) -> None:
        """Builds the engine and writes it, unless the gate refuses it."""
        began, file = perf_counter(), self.network.file
        inputs, outputs = self.network.ports()
        dynamic = [name for name, p in inputs.items() if any(isinstance(s, str) for s in p.sides)]
        plan, timings = compiled(file, dynamic, self.plan, self._timings(), self.tell)
        seconds = perf_counter() - began
        self._keep_timings(timings)
        loaded = Loaded(plan, self.gpu, self.plan.form, file)
        layers = inspected(loaded.engine)
        verdict = self._judged(loaded, inputs, outputs)
        (folder / PLAN).write_bytes(plan)
        report = Report(len(plan), seconds, layers, verdict)
        (folder / REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")

    def _judged(
        self, loaded: Loaded, inputs: Mapping[str, Port], outputs: Mapping[str, Port]
    ) -> Verdict:
        """The gate's verdict at the shapes that the engine is tuned to; a dynamic one has to be
        right at the least shapes too."""
        profile, name = self.plan.profile, self.network.name
        verdicts = []
        for shapes in (profile.best,) if profile.static else (profile.best, profile.least):
            self.tell(f"comparing {name} with the portable path", 0.0)
            context = loaded.context(shapes)
            given = examples(_typed(inputs, shapes), self.network.words)
            verdict = judge(
                (context, Place(self.gpu)),
                self.portable(),
                given,
                _typed(outputs, {output: context.shape(output) for output in outputs}),
                self.network.precision,
                timed=shapes is profile.best,
            )
            if verdict.refused is not None:
                raise EngineRefused(
                    f"the engine of {name} for {profile} is refused: {verdict.refused}: use "
                    "another backend for this bundle, or export it in a wider precision"
                )
            verdicts.append(verdict)
        return verdicts[0]

    @property
    def _timings_key(self) -> dict[str, str]:
        key = self.plan.key
        return {"kind": "timings", **{name: key[name] for name in ("backend", "version", "device")}}

    def _timings(self) -> bytes:
        folder = stored(self.store.keep, self._timings_key)
        return b"" if folder is None else (folder / _TIMINGS).read_bytes()

    def _keep_timings(self, timings: bytes) -> None:
        self.store.renew(self._timings_key, lambda folder: _write(folder / _TIMINGS, timings))


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def _typed(ports: Mapping[str, Port], shapes: Mapping[str, Shape]) -> dict[str, tuple[str, Shape]]:
    return {name: (port.dtype, shapes[name]) for name, port in ports.items()}


def compiled(
    file: Path, dynamic: Sequence[str], plan: Plan, timings: bytes, tell: Tell
) -> tuple[bytes, bytes]:
    """The plan of the network in `file` as TensorRT writes it, and its timings of kernels.

    dynamic: the inputs that have sides which vary; timings: those of builds before
    """
    trt = library()
    log().forget()
    builder = trt.Builder(log())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = parse(network, file)
    _let_attention_decompose(network)
    config = builder.create_builder_config()
    configure(config, plan.form)
    profile = builder.create_optimization_profile()
    shapes = plan.profile
    for name in dynamic:
        profile.set_shape(name, shapes.least[name], shapes.best[name], shapes.largest[name])
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise unusable(file, log().reason())
    cache = config.create_timing_cache(timings)
    if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another driver
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    phases = Phases(tell)
    config.progress_monitor = monitor(phases)
    serialized = builder.build_serialized_network(network, config)
    if phases.failure is not None:
        raise phases.failure
    if serialized is None:
        raise unusable(file, log().reason())
    del parser  # it held the weights
    return bytes(serialized), bytes(config.get_timing_cache().serialize())


def parse(network: trt.INetworkDefinition, file: Path) -> trt.OnnxParser:
    """Fills the network from the graph. The parser holds the weights that it read, so keep it."""
    trt = library()
    parser = trt.OnnxParser(network, log())
    if parser.parse_from_file(str(file)):
        return parser
    if parser.num_errors == 0:
        raise unusable(file, log().reason())
    error = parser.get_error(0)
    raise unusable(file, f"{error.node_operator()} {error.node_name()}: {error.desc()}")


def _let_attention_decompose(network: trt.INetworkDefinition) -> None:
    """Lets attentions for which there is no fused kernel, as in float32 or with heads of more than
    256 channels (the VAE's), be computed by several; else the build fails."""
    trt = library()
    if not hasattr(trt, "IAttentionBoundaryLayer"):  # before 10.14, which has no such operator
        return
    for k in range(network.num_layers):
        layer = network.get_layer(k)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionBoundaryLayer  # the bindings' way to what it is
            layer.attention.decomposable = True


def configure(config: trt.IBuilderConfig, form: Form) -> None:
    """What every plan is built with, and what its form asks for."""
    trt = library()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.max_aux_streams = AUX_STREAMS
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    if form.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if form.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if not form.refittable:
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)  # as fast as with its weights inside
    if form.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if form.hardware == "same-capability":
        if not hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"):
            raise BackendUnavailable(
                f"TensorRT {version()} knows no hardware same-capability: use 10.11 or later, or "
                "another --hardware"
            )
        level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        config.hardware_compatibility_level = level
    elif form.hardware == "ampere-or-later":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def inspected(engine: trt.ICudaEngine) -> Layers:
    """What is in an engine that was built with detailed verbosity."""
    trt = library()
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return layers(text, engine.device_memory_size_v2)


def layers(information: str, activations: int) -> Layers:
    """The inspector's JSON, summed up."""
    found = json.loads(information).get("Layers", [])
    kinds: dict[str, int] = {}
    attentions = 0
    for layer in found:
        facts = layer if isinstance(layer, dict) else {"Name": layer}
        kind = str(facts.get("LayerType", "unknown"))
        kinds[kind] = kinds.get(kind, 0) + 1
        # Fused kernels are called after "multi-head attention": _gemm_mha_v2, fmha_v2_flash, …
        words = (str(facts.get(key, "")) for key in ("Name", "LayerType", "TacticName"))
        attentions += any("mha" in word.lower() for word in words)
    return Layers(dict(sorted(kinds.items(), key=lambda item: -item[1])), attentions, activations)
