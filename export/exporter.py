"""Checkpoint in, bundle out: writes every network's graph and weights, checks them against torch,
and lays the bundle down whole or not at all."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from torch import nn
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from .. import bundle
from ..backends import Options
from ..bundle import Bundle, Difference, Graph, Manifest, Network, Preview, Tokenizer
from ..errors import CheckpointError, RecipeError, VerificationError
from ..networks import EIGHT_BITS
from ..pipeline import Pipeline
from ..tensors import TensorSpec
from . import (
    calibration,
    destination,
    drawing,
    embeddings,
    links,
    lora,
    manifest,
    modelopt,
    precision,
    previews,
    quantization,
    reuse,
    sources,
    symmetric,
    verify,
    weights,
)
from .calibration import Runs
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
        self.found = calibration.Findings()
        self.rounded = set(EIGHT_BITS) & set(self.recipe.precision.values())
        if self.rounded and self.checkpoint.task != "text":
            raise RecipeError(
                f"{min(self.rounded)} is calibrated on pictures that are drawn from text alone, "
                f"which this checkpoint (for the task {self.checkpoint.task}) does not: export it "
                "in fp32, fp16 or bf16"
            )
        if self.rounded & set(symmetric.KINDS):
            modelopt.require()

    def run(self, name: str, notes: tuple[str, ...]) -> Manifest:
        """Writes all files but bundle.json, and returns what that says."""
        described = manifest.describe(name, self.checkpoint, self.recipe)
        if self.other is not None:
            described = reuse.described(described, self.other)
        self.runs = self._drawn(described)
        linked = links.link(self.checkpoint, self.folder) if self.settings.link else {}
        networks: dict[str, Network] = {}
        for part, planned in self.plans.items():
            networks |= self._component(part, planned, linked.get(part, {}))
        if self.other is not None:
            reuse.require_same(networks, self.folder, self.other)
            notes += (f"graphs of {self.other.name}",)
        tokenizers = self._tokenizers()
        self.found.write(self.folder)
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
            preview=self._preview(),
        )

    def _preview(self) -> Preview | None:
        if "vae_decoder" not in self.recipe.networks:
            return None
        self._tell("fitting previews", advance=0)
        try:
            return previews.preview(self.checkpoint)
        except ValueError as error:
            raise CheckpointError(f"no previews can be drawn: {error}; mend the VAE") from error

    def draw(self, whole: Manifest) -> None:
        """Draws torch's picture with the bundle, and refuses it where the two differ."""
        halves = {network.precision for network in whole.networks.values()}
        picture = self.runs.picture
        if picture is None or "bf16" in halves:  # no runtime of this machine draws with it
            return
        self._tell("drawing a picture")
        pipeline = Pipeline(Bundle(self.folder, whole), "onnxruntime", Options(precision="fp32"))
        got = np.asarray(pipeline(drawing.request(pipeline.bundle, self.recipe.options)).images[0])
        pipeline.close()
        decibels = verify.psnr(got, picture.image)
        coarsest = min(verify.BOUNDS[n.precision].decibels for n in whole.networks.values())
        if not decibels >= coarsest:
            raise VerificationError(
                f"the picture drawn by the exported networks is {decibels:.1f} dB from torch's; "
                f"{coarsest:g} is the least: export in a wider precision (--precision fp32)"
            )
        gap = f"{decibels:.1f} dB from torch's" if decibels < math.inf else "torch's to the pixel"
        note = f"picture of {drawing.STEPS} steps: {gap}"
        bundle.write(self.folder, replace(whole, notes=(*whole.notes, note)))

    def _drawn(self, described: Manifest) -> Runs:
        """torch's pictures, where the checkpoint draws from text alone."""
        needed = {"unet", "vae_decoder"} <= set(self.recipe.networks)
        if self.other is not None or self.checkpoint.task != "text" or not needed:
            return Runs(None, (), self.unit, self.recipe.options)
        self._tell("drawing a picture with torch")
        pictured = Bundle(self.folder, described)
        asked = [drawing.request(pictured, self.recipe.options)]
        asked += drawing.more_requests() if self.rounded else []
        first, *others = (drawing.draw(self.checkpoint, self.plans, pictured, one) for one in asked)
        return Runs(first, tuple(others), self.unit, self.recipe.options)

    def _component(
        self, part: str, planned: list[Planned], linked: Mapping[str, weights.Place]
    ) -> dict[str, Network]:
        """Every network of a component, in one file of weights."""
        component = self.checkpoint.components[part]
        examples: dict[str, list[verify.Example]] = {}
        if self.other is None:
            module = component.module()
            examples = {p.name: self._examples(p, module) for p in planned}
            del module
        self._calibrate(planned, component)
        models, forms = {}, {}
        for p in planned:
            models[p.name] = p.graph.model()
            forms[p.name] = self._converted(p, models[p.name])
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
                p, models[p.name], forms[p.name], stored, found, counts[p.name]
            )
        return made

    def _examples(self, p: Planned, module: nn.Module) -> list[verify.Example]:
        """What the network is checked on: random values, or where it is of eight bits, whose
        ranges are those of real runs, what torch's picture brought."""
        if self._precision(p.name) not in EIGHT_BITS:
            return verify.examples(p, module, self.unit, self.recipe.options)
        return [verify.example(p, module, values) for values in self.runs.few(p)]

    def _converted(self, p: Planned, model: onnx.ModelProto) -> dict[str, weights.Weight]:
        """Gives the graph its precision; returns its weights."""
        kind = self._precision(p.name)
        if kind == "int8":
            return quantization.convert(model, p.graph.weights, self.found.spans[p.name])
        typed = "fp16" if kind in symmetric.KINDS else kind
        forms = precision.convert(model, p.graph.weights, typed, self.found.kept.get(p.name, ()))
        if kind in symmetric.KINDS:
            forms = symmetric.convert(model, forms, kind, self.found.scales[p.name])
        return forms

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

    def _calibrate(self, planned: list[Planned], component: Component) -> None:
        if self.other is not None:
            theirs = self.other.manifest.networks
            self.found.kept |= {p.name: theirs[p.name].kept for p in planned}
            return
        calibration.look(
            component,
            planned,
            self._precision,
            self.runs,
            self.folder,
            self.found,
            lambda stage: self._tell(stage, advance=0),
        )

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
            kept=self.found.kept.get(p.name, ()),
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
