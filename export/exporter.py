"""Checkpoint in, bundle out: traces every network, checks it against its module, and lays the
bundle down whole."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from .. import __version__, bundle
from ..backends import open_engine
from ..bundle import Betas, Bundle, Context, Defaults, Difference, Manifest, Network, Sizes
from ..errors import CheckpointError, OutputError, SdfastError
from ..tensors import Tensor
from . import graphs, weights
from .checkpoint import Checkpoint, read

# How far a network may be from its module: float32 sums in another order over some hundred layers.
LARGEST_RELATIVE = 1e-3
LARGEST_LEVELS = 1.0  # of a u8 picture: one where rounding falls to the other side
_TEMPORARY = ".sdfast-export-"


def export_checkpoint(
    checkpoint: Path,
    destination: Path,
    overwrite: bool,
    progress: Callable[[str, int, int], None],
) -> Bundle:
    """See `sdfast.export.export`."""
    _check_destination(destination, overwrite)
    stages = len(bundle.NETWORKS) + 2
    progress("reading the checkpoint", 0, stages)
    with _quiet():
        source = read(checkpoint)
    with _new_folder(destination) as folder:
        networks = {}
        for k, (name, network) in enumerate(graphs.sources(source).items()):
            progress(f"exporting {name}", k + 1, stages)
            networks[name] = _export_network(name, network, folder)
        progress("writing the bundle", stages - 1, stages)
        (folder / "tokenizer").mkdir()
        shutil.copyfile(source.tokenizer, folder / "tokenizer" / "tokenizer.json")
        manifest = _manifest(destination.resolve().name, source, networks, folder)
        bundle.write(folder, manifest)
        bundle.check_files(folder, bundle.parse(folder / bundle.MANIFEST))
        _sync(folder)
    progress("done", stages, stages)
    return bundle.load(destination.resolve())


def _check_destination(destination: Path, overwrite: bool) -> None:
    if not destination.exists() and not destination.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"{destination} exists: choose another place, or pass --overwrite")
    if not (destination / bundle.MANIFEST).is_file() or destination.is_symlink():
        raise OutputError(
            f"{destination} is no bundle: it is not overwritten; choose another place"
        )


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """A folder beside `destination` that takes its place when the block ends well, and goes away
    when it does not. What a killed export left there is removed first."""
    parent = destination.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{_TEMPORARY}{destination.name}-"
        for left in parent.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            yield folder
            folder.chmod(0o755)
            if destination.exists():
                old = folder.with_name(folder.name + "-old")
                destination.rename(old)
                folder.rename(destination)
                shutil.rmtree(old)
            else:
                folder.rename(destination)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"{destination} cannot be written ({error}): choose another place"
        ) from error


def _sync(folder: Path) -> None:
    for file in (*folder.rglob("*"), folder):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _export_network(name: str, source: graphs.Source, folder: Path) -> Network:
    graph, stored = folder / f"{name}.onnx", folder / f"{name}.safetensors"
    with _quiet():
        model = graphs.trace(source)
    parameters = weights.move_out(model, source.weights, stored)
    graph.write_bytes(model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(graph))
        engine = open_engine(graph, "onnxruntime")
    except (onnx.checker.ValidationError, SdfastError) as error:
        raise CheckpointError(f"the graph of {name} is not valid ({error})") from error
    difference = _difference(name, engine, source)
    inputs, outputs = dict(engine.inputs), dict(engine.outputs)
    engine.close()
    return Network(graph.name, stored.name, inputs, outputs, parameters, difference)


def _difference(name: str, engine: object, source: graphs.Source) -> Difference:
    """The largest difference over random inputs at three shapes; raises beyond the bounds."""
    worst = Difference(0.0, 0.0)
    for seed, (batch, larger) in enumerate([(2, False), (1, False), (3, True)]):
        inputs = graphs.example(source, batch, larger, seed)
        with torch.no_grad():
            expected = source.module(*inputs.values())
        wanted = expected if isinstance(expected, tuple) else (expected,)
        got = run(
            engine, {k: v.numpy() for k, v in inputs.items()}, [w.numpy() for w in wanted], source
        )
        for a, b in zip(got, wanted, strict=True):
            exact = b.numpy().astype(np.float64)
            absolute = float(np.abs(a - exact).max())
            relative = absolute / max(float(np.abs(exact).max()), 1e-12)
            allowed = LARGEST_LEVELS if b.dtype is torch.uint8 else LARGEST_RELATIVE
            if not (absolute if b.dtype is torch.uint8 else relative) <= allowed:
                raise CheckpointError(
                    f"{name} as exported differs from its module by {absolute:.3g} "
                    f"({relative:.3g} relative): the checkpoint cannot be exported"
                )
            worst = Difference(max(worst.absolute, absolute), max(worst.relative, relative))
    return worst


def run(
    engine: object,
    inputs: Mapping[str, np.ndarray],
    like: list[np.ndarray],
    source: graphs.Source,
) -> list[np.ndarray]:
    """The engine's outputs for NumPy inputs; `like` gives their shapes and types."""
    outputs = [np.empty_like(a, order="C") for a in like]
    bound = {n: Tensor.from_dlpack(np.ascontiguousarray(a)) for n, a in inputs.items()}
    bound |= {n: Tensor.from_dlpack(a) for n, a in zip(source.outputs, outputs, strict=True)}
    engine.bind(bound)  # type: ignore[attr-defined]
    engine.run()  # type: ignore[attr-defined]
    return outputs


def _manifest(
    name: str, source: Checkpoint, networks: dict[str, Network], folder: Path
) -> Manifest:
    scheduler, unet, vae = source.scheduler, source.unet.config, source.vae.config
    scale = graphs.image_scale(source.vae)
    side = int(unet.sample_size) * scale
    multiple = scale * graphs.downsampling(source.unet)
    small = side < 512
    if scheduler.get("trained_betas") is not None:
        raise CheckpointError(
            "scheduler_config.json has trained_betas; today's exporter takes betas by name"
        )
    try:
        betas = Betas(
            scheduler["beta_schedule"],
            float(scheduler["beta_start"]),
            float(scheduler["beta_end"]),
            int(scheduler["num_train_timesteps"]),
            bool(scheduler.get("rescale_betas_zero_snr", False)),
        )
    except KeyError as error:
        raise CheckpointError(
            f"scheduler_config.json lacks {error}: the noise schedule is not known"
        ) from error
    return Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        name=name,
        family="sd1",
        prediction=scheduler.get("prediction_type", "epsilon"),
        latent_scale=float(vae.scaling_factor),
        betas=betas,
        sizes=Sizes(
            width=side,
            height=side,
            minimum=multiple * 2,
            maximum=4 * side,
            multiple=multiple,
            channels=unet.in_channels,
            scale=scale,
        ),
        context=Context(
            tokens=source.text_encoder.config.max_position_embeddings,
            width=unet.cross_attention_dim,
        ),
        defaults=Defaults("dpmpp_2m", "karras", 20, 4.0 if small else 7.0),
        tokenizer="tokenizer/tokenizer.json",
        networks=networks,
        files=dict(bundle.digests(folder)),
        source={
            "checkpoint": source.path.resolve().name,
            "exporter": f"sdfast {__version__}",
            "torch": version("torch").partition("+")[0],
            "diffusers": version("diffusers"),
            "onnxscript": version("onnxscript"),
        },
    )


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
