"""The exporter: checkpoints become bundles.

    from sdfast.export import export
    export("checkpoint", Path("my-bundle"))
    export("model.safetensors", Path("my-bundle"), recipe="sd15", backend="tensorrt")

Needs the extra `export` (torch, diffusers, transformers, onnx, onnxscript); the runtime does not.
docs/export.md is the guide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..bundle import Bundle
from ..errors import BackendUnavailable
from ..loras import parse
from . import recipes
from .recipes import Recipe
from .settings import Progress, Settings, silent

__all__ = ["Progress", "Recipe", "Settings", "export", "lora_and_weight", "random_checkpoint"]


def export(
    source: str | Path,
    destination: Path,
    *,
    recipe: Recipe | str | Path | None = None,
    backend: str = "onnxruntime",
    revision: str | None = None,
    family: str | None = None,
    prediction: str | None = None,
    vae: Path | None = None,
    preview: Path | None = None,
    tokenizer: Path | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    embeddings: Sequence[Path] = (),
    precision: str | None = None,
    link: bool = False,
    graph_from: Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Exports a checkpoint into a new bundle at `destination`, compared with torch on the way.

    The bundle appears whole or not at all.

    source: a folder in diffusers' layout (of a whole model, or of one ControlNet or
        T2I-Adapter), a .safetensors file in the original layout, or "owner/name" on the hub
    recipe: one of `recipes.names()`, a .toml file, or a Recipe; None for that of the checkpoint's
        kind
    backend: one of recipes.BACKENDS, whose table of the recipe is followed; a Recipe is for one
        backend already
    revision: branch, tag or commit on the hub
    family, prediction: where what is detected is wrong ("sd1", "sd2", "sdxl", "sdxl-refiner";
        "epsilon", "v_prediction", "sample")
    vae: an AutoencoderKL or AutoencoderTiny, folder or file, in place of the checkpoint's
    preview: an AutoencoderTiny, folder or file, that becomes preview_decoder
    tokenizer: a folder with CLIP's vocabulary in place of the checkpoint's
    loras: LoRA files and their weights, -10 … 10, merged in this order
    embeddings: textual-inversion files; each one's name becomes a word of the prompt
    precision: "fp32", "fp16" or "bf16" for every network, in place of the recipe's; "int8" for
        the U-Net and the VAE's decoder, the others fp32, and for TensorRT "int8" and "fp8" (the
        U-Net), the others as the recipe says
    link: the graphs point into the checkpoint's own files, of which the bundle gets second names
        (hard links, so on one disk); they must not be changed in place
    graph_from: a bundle of the same architecture, whose graphs are taken; only weights are new
    allow_pickle: read .ckpt, .bin, .pt and .pth too, and nothing but tensors from them
    overwrite: replace a bundle that is at `destination`
    progress: told of every stage

    Raises RecipeError for a recipe that is not whole or for another kind of checkpoint,
    CheckpointError for what cannot be read or exported, LoraError for a LoRA that cannot be merged,
    VerificationError for a network that computes other than the checkpoint's, OutputError for a
    destination that is there or cannot be written, BackendUnavailable where the extra is not
    installed.
    """
    settings = Settings(
        recipe=recipe
        if recipe is None or isinstance(recipe, Recipe)
        else recipes.load(recipe, backend),
        backend=backend,
        revision=revision,
        family=family,
        prediction=prediction,
        vae=vae,
        preview=preview,
        tokenizer=tokenizer,
        loras=tuple(loras),
        embeddings=tuple(embeddings),
        precision=precision,
        link=link,
        graph_from=graph_from,
        allow_pickle=allow_pickle,
        overwrite=overwrite,
        progress=progress,
    )
    with _extra():
        from .exporter import export_checkpoint
    return export_checkpoint(source, destination, settings)


def lora_and_weight(text: str) -> tuple[Path, float]:
    """A LoRA file and its weight from "file.safetensors:0.8"; 1 without a weight. Raises LoraError
    for a weight that is none."""
    found = parse(text)
    return found.file, found.weight


def random_checkpoint(family: str, destination: str | Path, seed: int = 0) -> Path:
    """Writes a checkpoint with random weights in diffusers' layout, for tests and benchmarks, and
    returns its folder. family: a published model's name, as "sd15" or "sdxl", at its real sizes and
    fp16; "tiny-sd15" and so on: small ones in float32; "demo". CheckpointError lists all names."""
    from .random_models import write

    return write(family, Path(destination), seed)


@contextmanager
def _extra() -> Iterator[None]:
    """For imports of what the extra `export` brings."""
    try:
        yield
    except ImportError as error:
        raise BackendUnavailable(
            f"exporting needs {error.name}, which is not installed: pip install 'sdfast[export]'"
        ) from error
