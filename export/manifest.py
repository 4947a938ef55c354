"""What bundle.json says of a checkpoint, before there are networks."""

from __future__ import annotations

from importlib.metadata import version

from .. import __version__, bundle
from ..bundle import Betas, Context, Manifest, Sizes
from ..errors import CheckpointError
from .components import Checkpoint
from .networks import t2i_adapter, vae
from .recipes import Recipe


def describe(name: str, checkpoint: Checkpoint, recipe: Recipe) -> Manifest:
    """The manifest without networks, tokenizers and files. Raises CheckpointError."""
    control = checkpoint.task == "control"
    return Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        name=name,
        family=checkpoint.family,
        task=checkpoint.task,
        prediction=checkpoint.prediction,
        latent_scale=1.0 if control else _latent_scale(checkpoint),
        betas=None if control else _betas(checkpoint),
        sizes=_sizes(checkpoint, recipe),
        context=None if control else _context(checkpoint),
        defaults=recipe.defaults,
        tokenizers={},
        networks={},
        files={},
        source={
            "checkpoint": checkpoint.source,
            "exporter": f"sdfast {__version__}",
            **{library: version(library).partition("+")[0] for library in ("torch", "diffusers")},
        },
        notes=(),
        palette=None if recipe.palette is None else dict(recipe.palette),
    )


def unit(checkpoint: Checkpoint) -> int:
    """What a latent's sides are multiples of: the U-Net halves them at each level but the last."""
    if "t2i_adapter" in checkpoint.components:
        return int(2 ** max(t2i_adapter.levels(checkpoint.components["t2i_adapter"].config)))
    denoiser = checkpoint.components.get("unet") or checkpoint.components["controlnet"]
    return int(2 ** (len(denoiser.config["block_out_channels"]) - 1))


def _latent_scale(checkpoint: Checkpoint) -> float:
    scale = checkpoint.components["vae"].config["scaling_factor"]
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise CheckpointError(
            f"the VAE's scaling_factor is {scale!r}; it must be a number above 0: mend its config, "
            "or take another VAE with --vae"
        )
    return float(scale)


def _betas(checkpoint: Checkpoint) -> Betas:
    scheduler = checkpoint.scheduler
    if scheduler.get("trained_betas") is not None:
        raise CheckpointError(
            "scheduler_config.json has trained_betas; betas can be exported by name alone:"
            " linear, scaled_linear or squaredcos_cap_v2"
        )
    try:
        betas = Betas(
            scheduler["beta_schedule"],
            float(scheduler["beta_start"]),
            float(scheduler["beta_end"]),
            int(scheduler["num_train_timesteps"]),
            bool(scheduler.get("rescale_betas_zero_snr", False)),
        )
        bundle.noise_schedule(betas)
    except KeyError as error:
        raise CheckpointError(
            f"scheduler_config.json lacks {error}: the noise schedule is not known"
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"scheduler_config.json has no noise schedule ({error})") from error
    return betas


def _sizes(checkpoint: Checkpoint, recipe: Recipe) -> Sizes:
    """The recipe's range; by default what the U-Net was trained on."""
    parts = checkpoint.components
    scale = vae.image_scale(parts["vae"].config) if "vae" in parts else 8
    multiple = scale * unit(checkpoint)
    channels = parts["vae"].config["latent_channels"] if "vae" in parts else 4
    height, width = recipe.profiles["height"], recipe.profiles["width"]
    trained = (parts["unet"].config.get("sample_size") if "unet" in parts else None) or 64
    latents = trained[:2] if isinstance(trained, list | tuple) else [trained, trained]
    if len(latents) != 2 or not all(type(side) is int and side > 0 for side in latents):
        raise CheckpointError(
            f"the U-Net's sample_size is {trained!r}; it must be a whole number above 0, or two"
        )
    sides = [
        side * scale if p.minimum < p.maximum else p.optimum  # a fixed profile is what there is
        for p, side in zip((width, height), latents[::-1], strict=True)  # of height and width
    ]
    low = min(width.minimum, height.minimum, *sides)
    high = max(width.maximum, height.maximum, *sides)
    return Sizes(*sides, low, high, multiple, int(channels), scale)


def _context(checkpoint: Checkpoint) -> Context:
    encoders = [c for n, c in checkpoint.components.items() if n.startswith("text_encoder")]
    second = checkpoint.components.get("text_encoder_2")
    return Context(
        tokens=int(encoders[0].config["max_position_embeddings"]),
        width=sum(int(encoder.config["hidden_size"]) for encoder in encoders),
        pooled=int(second.config["projection_dim"]) if second else None,
        zeros_for_empty=checkpoint.family == "sdxl",
    )
