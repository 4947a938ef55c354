"""Checkpoint in, bundle out: writes every network's graph and weights, checks them against torch,
and lays the bundle down whole or not at all."""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from .. import bundle
from ..backends import Options
from ..bundle import Bundle, Difference, Graph, Manifest, Network, Tokenizer
from ..errors import CheckpointError, RecipeError, VerificationError
from ..pipeline import Pipeline
from ..tensors import TensorSpec
from . import (
    destination,
    drawing,
    embeddings,
    links,
    lora,
    manifest,
    precision,
    quantization,
    reuse,
    sources,
    verify,
    weights,
)
from .components import Checkpoint, Component
from .graph import OPSET, operators
from .plan import Planned, plan
from .recipes import Recipe
from .settings import Settings


def export_checkpoint(source: str | Path, place: Path, settings: Settings) -> Bundle:
    """See `sdfast.export.export`."""
    destination.check(place, source, settings.overwrite)
    other = None if settings.graph_from is None else reuse.read(settings.graph_from)
    settings.progress("reading the checkpoint", 0, 1)
    with _quiet():
        checkpoint, notes = _read(source, settings)
        recipe = settings.recipe_for(checkpoint)
        if other is not None:
            recipe = reuse.recipe(other, checkpoint, recipe)
        if settings.link:
            recipe = replace(recipe, layout="checkpoint")
        with destination.new_folder(place) as folder:
            work = _Work(checkpoint, recipe, settings, folder, other)
            whole = work.run(place.resolve().name, notes)
            try:
                bundle.write(folder, whole)
            except ValueError as error:
                raise CheckpointError(
                    f"{source} makes no bundle that can be run ({error})"
                ) from error
            work.draw(whole)
    settings.progress("done", work.stages, work.stages)
    return Bundle(place.resolve(), bundle.parse(place.resolve() / bundle.MANIFEST))


def _read(source: str | Path, settings: Settings) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint with what is merged into it, and what to tell of that."""
    checkpoint = sources.read(
        source,
        revision=settings.revision,
        family=settings.family,
        prediction=settings.prediction,
        vae=settings.vae,
        tokenizer=settings.tokenizer,
        allow_pickle=settings.allow_pickle,
    )
    notes = []
    for file, weight in settings.loras:
        checkpoint, report = lora.merge(checkpoint, file, weight)
        notes.append(f"LoRA {report}")
    for file in settings.embeddings:
        checkpoint, report = embeddings.add(checkpoint, file)
        notes.append(f"embedding {report}")
    if settings.preview is not None:
        preview = sources.read_vae(
            settings.preview, checkpoint.family, allow_pickle=settings.allow_pickle
        )
        parts = {**checkpoint.components, "preview": preview}
        checkpoint = replace(checkpoint, components=parts)
    return checkpoint, tuple(notes)


@dataclass
class _Work:
    """One export on its way."""

    checkpoint: Checkpoint
    recipe: Recipe
    settings: Settings
    folder: Path
    other: Bundle | None  # whose graphs are taken
    done: int = 0

    def __post_init__(self) -> None:
        self.plans = plan(self.checkpoint, self.recipe.options, self.recipe.networks)
        self.unit = manifest.unit(self.checkpoint)
        self.stages = sum(map(len, self.plans.values())) + 3
        self.magnitudes: dict[str, dict[str, float]] = {}
        self.spans: dict[str, quantization.Spans] = {}
        if self._int8() and self.checkpoint.task != "text":
            raise RecipeError(
                "int8 is calibrated on pictures that are drawn from text alone, which this "
                f"checkpoint (for the task {self.checkpoint.task}) does not: export it in fp32, "
                "fp16 or bf16"
            )

    def run(self, name: str, notes: tuple[str, ...]) -> Manifest:
        """Writes all files but bundle.json, and returns what that says."""
        described = manifest.describe(name, self.checkpoint, self.recipe)
        if self.other is not None:
            described = reuse.described(described, self.other)
        self.drawn = self._drawn(described)
        linked = links.link(self.checkpoint, self.folder) if self.settings.link else {}
        networks: dict[str, Network] = {}
        for part, planned in self.plans.items():
            networks |= self._component(part, planned, linked.get(part, {}))
        if self.other is not None:
            reuse.require_same(networks, self.folder, self.other)
            notes += (f"graphs of {self.other.name}",)
        tokenizers = self._tokenizers()
        if self.magnitudes:
            precision.write_report(self.folder / "magnitudes.json", self.magnitudes)
        if self.spans:
            quantization.write_report(self.folder / "ranges.json", self.spans)
        self._tell("computing checksums")
        return replace(
            described,
            networks=networks,
            tokenizers=tokenizers,
            files=bundle.digests(self.folder),
            source={
                **described.source,
                "recipe": self.recipe.name,
                "layout": self.recipe.layout,
            },
            notes=notes,
        )

    def draw(self, whole: Manifest) -> None:
        """Draws torch's picture with the bundle, and refuses it where the two differ."""
        halves = {network.precision for network in whole.networks.values()}
        if self.drawn is None or "bf16" in halves:  # no runtime of this machine draws with it
            return
        self._tell("drawing a picture")
        pipeline = Pipeline(Bundle(self.folder, whole), "onnxruntime", Options(precision="fp32"))
        got = np.asarray(pipeline(drawing.request(pipeline.bundle, self.recipe.options)).images[0])
        pipeline.close()
        decibels = verify.psnr(got, self.drawn.image)
        coarsest = min(verify.BOUNDS[n.precision].decibels for n in whole.networks.values())
        if not decibels >= coarsest:
            raise VerificationError(
                f"the picture drawn by the exported networks is {decibels:.1f} dB from torch's; "
                f"{coarsest:g} is the least: export in a wider precision (--precision fp32)"
            )
        gap = f"{decibels:.1f} dB from torch's" if decibels < math.inf else "torch's to the pixel"
        note = f"picture of {drawing.STEPS} steps: {gap}"
        bundle.write(self.folder, replace(whole, notes=(*whole.notes, note)))

    def _drawn(self, described: Manifest) -> drawing.Drawing | None:
        """torch's picture, where the checkpoint draws from text alone."""
        needed = {"unet", "vae_decoder"} <= set(self.recipe.networks)
        if self.other is not None or self.checkpoint.task != "text" or not needed:
            return None
        self._tell("drawing a picture with torch")
        pictured = Bundle(self.folder, described)
        first = drawing.request(pictured, self.recipe.options)
        more = drawing.more_requests() if self._int8() else []
        drawn = drawing.draw(self.checkpoint, self.plans, pictured, first)
        self.more = [drawing.draw(self.checkpoint, self.plans, pictured, r) for r in more]
        return drawn

    def _component(
        self, part: str, planned: list[Planned], linked: Mapping[str, weights.Place]
    ) -> dict[str, Network]:
        """Every network of a component, in one file of weights."""
        component = self.checkpoint.components[part]
        examples: dict[str, list[verify.Example]] = {}
        if self.other is None:
            module = component.module()
            options = self.recipe.options
            examples = {p.name: verify.examples(p, module, self.unit, options) for p in planned}
            del module
        kept = self._kept(planned, component)
        models, forms = {}, {}
        for p in planned:
            models[p.name] = p.graph.model()
            forms[p.name] = self._converted(p, models[p.name], kept[p.name])
        # Before nodes are added that backends fold away when they load a graph (weights.py).
        counts = {name: operators(model) for name, model in models.items()}
        stored = self._lay(part, [(models[p.name], forms[p.name]) for p in planned], linked)
        for p in planned:
            (self.folder / f"{p.name}.onnx").write_bytes(
                models[p.name].SerializeToString(deterministic=True)
            )
        opened = verify.Opened(self.folder, planned, self._precision)
        made = {}
        for p in planned:
            self._tell(f"exporting {p.name}")
            found = self._checked(p, component, opened, examples.get(p.name, []))
            made[p.name] = self._network(
                p, models[p.name], forms[p.name], stored, kept[p.name], found, counts[p.name]
            )
        return made

    def _converted(
        self, p: Planned, model: onnx.ModelProto, kept: tuple[str, ...]
    ) -> dict[str, weights.Weight]:
        """Gives the graph its precision; returns its weights."""
        kind = self._precision(p.name)
        if kind == "int8":
            return quantization.convert(model, p.graph.weights, self.spans[p.name])
        return precision.convert(model, p.graph.weights, kind, kept)

    def _lay(
        self,
        part: str,
        graphs: list[tuple[onnx.ModelProto, Mapping[str, weights.Weight]]],
        linked: Mapping[str, weights.Place],
    ) -> tuple[str, ...]:
        """Writes the weights; returns the files that the graphs point into."""
        tensors = self.checkpoint.components[part].weights
        file = self.folder / f"{part}.safetensors"
        if self.recipe.layout == "checkpoint":
            weights.as_checkpoint(graphs, tensors, file, linked)
        else:
            weights.as_graph(graphs, tensors, file)
        return weights.files(model for model, _ in graphs)

    def _kept(self, planned: list[Planned], component: Component) -> dict[str, tuple[str, ...]]:
        """What stays float32: the tensors that real prompts, or else random inputs, make too large
        for float16; the products that int8 leaves out. Also finds the ranges of int8's tensors."""
        kept: dict[str, tuple[str, ...]] = {p.name: () for p in planned}
        halves = [p for p in planned if self._precision(p.name) == "fp16"]
        bytes_ = [p for p in planned if self._precision(p.name) == "int8"]
        if not halves and not bytes_:
            return kept
        if self.other is not None:
            theirs = self.other.manifest.networks
            return kept | {p.name: theirs[p.name].kept for p in halves}
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="calibration-") as place:
            exact = Path(place)
            graphs = [(p.graph.model(), p.graph.weights) for p in planned]
            weights.as_checkpoint(graphs, component.weights, exact / "weights.safetensors")
            for p, (model, _) in zip(planned, graphs, strict=True):
                (exact / f"{p.name}.onnx").write_bytes(model.SerializeToString())
            opened = verify.Opened(exact, planned, lambda name: "fp32")
            for p in halves:
                self._tell(f"looking for what float16 cannot hold in {p.name}", advance=0)
                feeds = [verify.feed(p, seen, opened.hoisted) for seen in self._seen(p)]
                self.magnitudes[p.name] = precision.magnitudes(exact / f"{p.name}.onnx", feeds)
                kept[p.name] = precision.too_large(self.magnitudes[p.name])
            for p in bytes_:
                self._tell(f"looking for the ranges of {p.name}", advance=0)
                feeds = (verify.feed(p, seen, opened.hoisted) for seen in self._every(p))
                model = p.graph.model()
                names = quantization.rounded(model, p.graph.weights)
                self.spans[p.name] = quantization.spans(exact / f"{p.name}.onnx", names, feeds)
                kept[p.name] = quantization.left_out(model, p.graph.weights)
        return kept

    def _seen(self, p: Planned) -> list[verify.Values]:
        """What the network reads when torch draws, or random values where it does not."""
        if self.drawn is not None:
            seen = self.drawn.seen[p.name]
            chosen = {0, len(seen) // 2, len(seen) - 1}  # the beginning, the middle and the end
            return [self._adapted(p, seen[k]) for k in sorted(chosen)]
        options, side = self.recipe.options, 4 * self.unit
        shapes = p.shapes(1, options.height or side, options.width or side)
        return [verify.random_inputs(p, shapes, 0)]

    def _every(self, p: Planned) -> list[verify.Values]:
        """What the network reads at every step of every picture that torch draws."""
        drawn = [self.drawn, *self.more] if self.drawn is not None else []
        return [self._adapted(p, values) for one in drawn for values in one.seen[p.name]]

    def _int8(self) -> bool:
        return "int8" in self.recipe.precision.values()

    def _adapted(self, p: Planned, values: verify.Values) -> verify.Values:
        """What a run brought, and random values for what it had no need of."""
        rows, _, height, width = values["latent"].shape if "latent" in values else (1, 0, 8, 8)
        return {**verify.random_inputs(p, p.shapes(rows, height, width), 0), **values}

    def _checked(
        self,
        p: Planned,
        component: Component,
        opened: verify.Opened,
        examples: list[verify.Example],
    ) -> Difference:
        file, kind = self.folder / f"{p.name}.onnx", self._precision(p.name)
        try:
            # Without the weights: the checker takes no file that has a second name (--link).
            onnx.checker.check_model(weights.as_inputs(onnx.load(file, load_external_data=False)))
        except onnx.checker.ValidationError as error:
            raise CheckpointError(f"the graph of {p.name} is not valid ({error})") from error
        if self.other is not None:
            return self.other.manifest.networks[p.name].difference
        found = verify.difference(opened.network(p.name), p, examples, opened.hoisted)
        if not verify.within(found, kind, "image" in examples[0].expected):
            where = verify.first_layer(
                file, kind, p, component.module(), examples[0], opened.hoisted
            )
            raise verify.refuse(p.name, found, where)
        if p.name not in opened.projections:
            opened.close(p.name)
        return found

    def _network(
        self,
        p: Planned,
        model: onnx.ModelProto,
        form: Mapping[str, weights.Weight],
        stored: tuple[str, ...],
        kept: tuple[str, ...],
        found: Difference,
        counts: dict[str, int],
    ) -> Network:
        options = self.recipe.options
        named = tuple(name for name, value in vars(options).items() if value)
        parts = {part for weight in form.values() for part in weight.parts}
        tensors = {n: s for n, s in p.graph.shapes.items() if n in parts}
        return Network(
            file=f"{p.name}.onnx",
            weights=stored,
            inputs=_specs(model.graph.input),
            outputs=_specs(model.graph.output),
            parameters=sum(int(np.prod(shape)) for shape in tensors.values()),
            precision=self._precision(p.name),
            kept=kept,
            difference=found,
            graph=Graph(OPSET, named, counts, operators(p.plain.model())),
        )

    def _precision(self, network: str) -> str:
        return self.recipe.precision[network]

    def _tokenizers(self) -> dict[str, Tokenizer]:
        made = {}
        for name, tokenizer in self.checkpoint.tokenizers.items():
            place = self.folder / name
            place.mkdir()
            # Not by its own `save`, which tells of a full disk by a bare Exception.
            text = tokenizer.to_str(pretty=True)
            (place / "tokenizer.json").write_text(text, encoding="utf-8")
            encoder = name.replace("tokenizer", "text_encoder")
            made[encoder] = Tokenizer(f"{name}/tokenizer.json")
        return made

    def _tell(self, stage: str, advance: int = 1) -> None:
        self.settings.progress(stage, self.done, self.stages)
        self.done += advance


def _specs(values: object) -> dict[str, TensorSpec]:
    kinds = {1: "f32", 2: "u8", 6: "i32"}
    return {
        value.name: TensorSpec(
            kinds[value.type.tensor_type.elem_type],
            tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim),
        )
        for value in values  # type: ignore[attr-defined]
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' notes about themselves from the user; errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        enable_progress_bar()
        logging.disable(before)
