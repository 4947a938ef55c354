"""A bundle's networks as functions of arrays, and Euler's method over them: how pictures that need
more than text are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sdfast import samplers
from sdfast.bundle import Bundle, noise_schedule
from sdfast.conditioning import GUIDED, UNGUIDED, load_tokenizer, sizes

from .pictures import Drawn

Arrays = dict[str, NDArray[Any]]


class Networks:
    """run(name, feed): a network's outputs for what it reads of `feed`."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._session = cache(self._opened)

    def _opened(self, name: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(
            self.bundle.network(name), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, name: str, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        network = self.bundle.manifest.networks[name]
        found = self._session(name).run(
            list(network.outputs), {given: feed[given] for given in network.inputs}
        )
        return dict(zip(network.outputs, found, strict=True))

    def conditions(self, texts: Sequence[str], width: int, height: int) -> Arrays:
        """What U-Nets and ControlNets read of texts, a row for each: the first is the guided."""
        manifest, found, contexts = self.bundle.manifest, Arrays(), []
        for name, tokenizer in sorted(manifest.tokenizers.items()):
            vocabulary = load_tokenizer(self.bundle.path / tokenizer.file)
            ids = [encoding.ids for encoding in vocabulary.encode_batch(list(texts))]
            found |= self(name, {"tokens": np.array(ids, np.int32)})
            contexts.append(found["context"])
        found["context"] = np.concatenate(contexts, axis=-1)
        rows = [GUIDED, *[UNGUIDED] * (len(texts) - 1)]
        told = [sizes(width, height, 6, row) for row in rows]
        return found | {"sizes": np.array(told, np.float32)}

    def noise(self, rows: Arrays, unet: str = "unet") -> NDArray[np.float32]:
        """The U-Net's answer to latent, timestep, context …, with what is hoisted out of it."""
        feed = dict(rows)
        for projection in ("time_projection", "context_projection"):
            feed |= self(projection, feed)
        answer: NDArray[np.float32] = self(unet, feed)["noise"]
        return answer

    def encode(self, image: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Mean and logarithm of the variance of a picture's latents, not scaled."""
        found = self("vae_encoder", {"image": image[None]})
        return found["mean"], found["logvar"]

    def draw(
        self,
        x: NDArray[Any],
        sigmas: Sequence[float],
        guided: Callable[[NDArray[Any], float], NDArray[Any]],
    ) -> Drawn:
        """Euler's method from x [1, 4, h, w] at sigmas[0], and the picture of where it ends.

        guided(latent, t): the noise in x at timestep t, latent = x / √(σ² + 1), guidance applied
        """
        schedule = noise_schedule(self.bundle.betas)

        def model(x: NDArray[Any], sigma: float) -> NDArray[Any]:
            latent = (x / (sigma**2 + 1) ** 0.5).astype(np.float32)
            return x - sigma * guided(latent, schedule.timestep(sigma)).astype(np.float64)

        x = samplers.get("euler").sample(model, x.astype(np.float64), sigmas)
        latents = x.astype(np.float32)
        return Drawn(latents, self("vae_decoder", {"latent": latents})["image"][0])


def repeated(latent: NDArray[Any], t: float, rows: int) -> Arrays:
    """latent and timestep with as many equal rows as there are texts."""
    return {
        "latent": np.repeat(latent, rows, axis=0),
        "timestep": np.full(rows, t, np.float32),
    }
