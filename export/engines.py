"""Bundle in, TensorRT engines in the store: for the sizes that a recipe gives.

Needs TensorRT and a GPU, and of the exporter no more than its recipes (for networks in bf16, which
ONNX Runtime does not compute, also onnx).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .. import compiled, store
from ..backends import Engine, Options, onnxruntime, tensorrt
from ..backends.acceptance import Place
from ..backends.tensorrt_build import Network, Outcome, Shelf, Tell, build
from ..backends.tensorrt_plans import Form, Pictures, Range, profiles
from ..bundle import Bundle
from ..conditioning import load_tokenizer
from ..devices.cuda import Cuda
from ..errors import BackendUnavailable, RecipeError, nearest
from . import recipes
from .recipes import Recipe

NETWORKS = (
    "text_encoder",
    "text_encoder_2",
    "time_projection",
    "context_projection",
    "unet",
    "unet_shallow",
    "vae_decoder",
)
"""Those that pictures from text take, in their order."""


def build_engines(
    bundle: Bundle,
    gpu: int = 0,
    *,
    recipe: str | Path | None = None,
    networks: Sequence[str] = (),
    form: Form | None = None,
    tell: Callable[[str, str, float], None] | None = None,
) -> Iterator[tuple[str, Outcome]]:
    """The engines of a bundle, one after the other, by the networks that they are of.

    gpu: its number
    recipe: whose sizes they are for, by name or file; None for the one that the bundle was exported
        with
    networks: some of the bundle's; none for all of NETWORKS that it has
    tell: told of network, what is being done, and how much of that is done, 0 … 1
    Raises BackendUnavailable without TensorRT or the GPU, RecipeError for a recipe of another
    family or a network that there is not, and what `tensorrt_build.build` raises.
    """
    manifest = bundle.manifest
    of = recipes.load(recipe or manifest.source.get("recipe", ""), "tensorrt")
    if of.family != manifest.family:
        raise RecipeError(
            f"recipe {of.name} is for {of.family}, the bundle is {manifest.family}: take another of"
            f" {', '.join(recipes.names())}"
        )
    if odd := [name for name in networks if name not in manifest.networks]:
        raise RecipeError(
            f"bundle {bundle.name} has no network {odd[0]!r}{nearest(odd[0], manifest.networks)}; "
            f"it has {', '.join(manifest.networks)}"
        )
    if reason := tensorrt.reason_unusable():
        raise BackendUnavailable(reason)
    keep = partial(compiled.entry, store.home())
    device = Cuda(gpu, keep)
    shelf = Shelf(keep, partial(compiled.renewed, store.home()))
    drawn = pictures(bundle, of)
    for name in networks or [name for name in NETWORKS if name in manifest.networks]:
        built = network(bundle, name, device)
        listed = manifest.networks[name]
        made_of = {file: manifest.files[file] for file in (listed.file, *listed.weights)}
        wanted = profiles(name, built.ports()[0], drawn)
        told: Tell = partial(tell, name) if tell is not None else _silent
        for outcome in build(built, wanted, form or Form(), device, shelf, made_of, told):
            yield name, outcome


def _silent(_doing: str, _part: float) -> None:
    """Tells nobody."""


def pictures(bundle: Bundle, recipe: Recipe) -> Pictures:
    """What engines are built for: the recipe's sizes, with the rows of guidance where the model
    takes it."""
    networks, defaults = bundle.manifest.networks, bundle.defaults
    read = {
        name for n in ("time_projection", "unet") if n in networks for name in networks[n].inputs
    }
    guided = "guidance" not in read and defaults.guidance != 1
    batch, height, width = (
        Range(p.minimum, p.optimum, p.maximum)
        for p in (recipe.profiles[axis] for axis in ("batch", "height", "width"))
    )
    halves = (1, 2) if guided else (1,)
    return Pictures(batch, height, width, bundle.sizes.scale, bundle.context.tokens, halves)


def network(bundle: Bundle, name: str, gpu: Cuda) -> Network:
    """One of the bundle's, to be built for a GPU."""
    listed, words = bundle.manifest.networks[name], 1
    if name in bundle.manifest.tokenizers:
        tokenizer = load_tokenizer(bundle.path / bundle.manifest.tokenizers[name].file)
        words = tokenizer.get_vocab_size()
    file = bundle.network(name)
    return Network(
        file, name, listed.precision, words, partial(_portable, file, listed.precision, gpu)
    )


def _portable(file: Path, precision: str, gpu: Cuda) -> tuple[Engine, Place]:
    """ONNX Runtime, on the GPU where it can."""
    on = gpu if onnxruntime.reason_unusable("cuda") is None else None
    with computable(file, precision) as graph:
        return onnxruntime.open(graph, Options(gpu=on)), Place(on)


@contextmanager
def computable(file: Path, precision: str) -> Iterator[Path]:
    """The graph as ONNX Runtime computes it: one in bf16 in float32, with every tensor rounded to
    its type. It lies beside the weights that it points into."""
    if precision != "bf16":
        yield file
        return
    try:
        import onnx
    except ImportError as error:
        raise BackendUnavailable(
            "networks in bf16 are checked with onnx, which is not installed: pip install "
            "'sdfast[export]'"
        ) from error

    from .precision import as_rounded

    rounded = file.with_suffix(".rounded.onnx")
    model = as_rounded(onnx.load(file, load_external_data=False))
    rounded.write_bytes(model.SerializeToString())
    try:
        yield rounded
    finally:
        rounded.unlink()
