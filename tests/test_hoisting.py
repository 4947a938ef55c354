"""A U-Net whose time and context projections are hoisted draws what the plain one draws, and both
draw what NumPy does: on small models of every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tokenizers
from small_bundles import FORMS, MODELS, Array, Model, weights, write_bundle

import sdfast
from sdfast import bundle, noise, samplers
from sdfast.backends import open_engine
from sdfast.devices.cpu import start
from sdfast.errors import InvalidRequest
from sdfast.pipeline import Pipeline
from sdfast.request import Request, Resolved, resolve
from sdfast.tensors import Tensor

PROMPT, NEGATIVE = "a large red circle", "blue stripes"

Opened = Callable[[str, str], Pipeline]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The pipeline of a model in a form, made once."""
    made: dict[tuple[str, str], Pipeline] = {}

    def load(model: str, form: str) -> Pipeline:
        if (model, form) not in made:
            folder = tmp_path_factory.mktemp(f"{model}-{form}")
            write_bundle(folder, MODELS[model], FORMS[form])
            made[model, form] = sdfast.load(folder, "onnxruntime", threads=1)
        return made[model, form]

    return load


def drawn(pipe: Pipeline, **parameters: Any) -> tuple[sdfast.Result, Array]:
    """What a request brings, and the latents of its last batch."""
    result = pipe(PROMPT, seed=3, **parameters)
    return result, np.array(pipe._opened["vae_decoder"]._bound["latent"])  # type: ignore[attr-defined]


GUIDANCE: dict[str, dict[str, Any]] = {
    "default": {},
    "without": {"guidance": 1.0},
    "negative": {"negative_prompt": NEGATIVE, "guidance_rescale": 0.5},
    "interval": {"guidance_interval": (0.3, 5.0)},
}
CASES = [
    (model, guidance)
    for model in MODELS
    for guidance in GUIDANCE
    if guidance in ("default", "without") or not model.startswith("lcm")
]


@pytest.mark.parametrize("form", ["time", "context", "both"])
@pytest.mark.parametrize(("model", "guidance"), CASES)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_ancestral", "dpm_adaptive"])
def test_a_hoisted_bundle_draws_what_the_plain_one_draws(
    opened: Opened, model: str, guidance: str, sampler: str, form: str
) -> None:
    for count in (1, 3):
        asked = {**GUIDANCE[guidance], "sampler": sampler, "count": count}
        (plain, expected), (hoisted, found) = (
            drawn(opened(model, made), **asked) for made in ("plain", form)
        )
        assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
        for a, b in zip(plain.images, hoisted.images, strict=True):
            # One level where rounding falls to the other side.
            assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def encoded(pipe: Pipeline, model: Model, text: str | None) -> tuple[Array, Array]:
    """The context and the pooled text of one text; None is zeros."""
    constants, contexts = weights(model), []
    for name in sorted(model.widths):
        file = pipe.bundle.path / pipe.bundle.manifest.tokenizers[name].file
        ids = tokenizers.Tokenizer.from_file(str(file)).encode(text or "").ids
        contexts.append(constants[name][ids].astype(np.float64))
    context, pooled = np.concatenate(contexts, -1), np.zeros(5)
    if "pooled" in model.told:
        pooled = contexts[-1].mean(0) @ constants["pooled_weight"]
    return (context, pooled) if text is not None else (0 * context, 0 * pooled)


def reference(
    pipe: Pipeline,
    model: Model,
    asked: Resolved,
    unguided: tuple[str | None, tuple[float, ...]],
    guided: tuple[str, tuple[float, ...]],
) -> Array:
    """The latents of a request by the sampler's function, in float64: texts and what follows the
    pooled text (sizes in hundreds, guidance) for each half."""
    constants, schedule = weights(model), bundle.noise_schedule(pipe.bundle.betas)
    shape = (asked.count, 4, asked.height // 8, asked.width // 8)

    def network(latent: Array, t: float, text: str | None, told: tuple[float, ...]) -> Array:
        context, pooled = encoded(pipe, model, text)
        parts = [
            np.cos(t * constants["frequencies"][0]),
            *([pooled] if len(told) > 1 else []),
            told,
        ]
        time = np.tanh(np.concatenate(parts) @ constants["time_weight"]) * 0.1
        keys, values = np.split(context @ constants["kv_weight"], 2, axis=-1)
        pixels = latent.reshape(len(latent), 4, -1).transpose(0, 2, 1)
        attended = softmax(pixels @ keys.T) @ values
        picture = attended.transpose(0, 2, 1).reshape(latent.shape)
        return latent * 0.9 + picture * 0.1 + time[:, None, None]

    def denoised(x: Array, sigma: float) -> Array:
        latent, t = x / np.sqrt(sigma**2 + 1), schedule.timestep(sigma)
        answer = network(latent, t, *guided)
        scale = 1.0 if "guidance" in model.told else asked.guidance
        if scale != 1:
            other = network(latent, t, *unguided)
            answer = other + scale * (answer - other)
        return x - sigma * answer

    sampler, out = samplers.get(asked.sampler), Tensor.empty(shape, "f32")
    first, draw = noise.streams(sampler.noise, asked.rng, asked.seeds)
    start(out, asked.sigmas[0], first)
    begin = np.array(out, np.float64)

    def draws(sigma: float, sigma_next: float) -> Array:
        draw(out, sigma, sigma_next)
        return np.array(out, np.float64)

    return np.asarray(sampler.sample(denoised, begin, asked.sigmas, draws))


WIDE = (0.24, 0.32, 0.0, 0.0, 0.24, 0.32)  # of 32 × 24 pixels, in hundreds
BORDERED = WIDE[:4]
HALVES: dict[str, tuple[tuple[str | None, tuple[float, ...]], tuple[str, tuple[float, ...]]]] = {
    "sd": (("", ()), (PROMPT, ())),
    "xl": ((None, WIDE), (PROMPT, WIDE)),
    "refiner": (("", (*BORDERED, 0.025)), (PROMPT, (*BORDERED, 0.06))),
    "lcm": (("", ()), (PROMPT, (4.0,))),
    "lcm-xl": (("", ()), (PROMPT, (*WIDE, 4.0))),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "supreme"])
def test_networks_are_given_what_the_request_says(
    opened: Opened, model: str, sampler: str, form: str
) -> None:
    pipe = opened(model, form)
    _, found = drawn(pipe, sampler=sampler)
    asked = resolve(Request(PROMPT, seed=3, sampler=sampler), pipe.bundle)
    expected = reference(pipe, MODELS[model], asked, *HALVES[model])
    # The networks answer in float32, and what comes of it is fed back.
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


class Counted:
    """An engine that counts its runs and remembers the rows of the last."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.runs, self.rows = inner, 0, 0
        self.close = inner.close

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        self.inner.bind(tensors)
        self.rows = next(tensors[n].shape[0] for n in ("timestep", "context") if n in tensors)

    def run(self, stream: int = 0) -> None:
        self.inner.run(stream)
        self.runs += 1


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "dpmpp_2m_sde"])
def test_projections_run_once_a_request_on_rows_that_differ(opened: Opened, sampler: str) -> None:
    pipe = opened("xl", "both")
    pipe.close()
    time = pipe._opened._engines["time_projection"] = Counted(
        open_engine(pipe.bundle.network("time_projection"))
    )
    with pipe._variants.plain.conditions() as conditions:
        context = conditions._projection = Counted(conditions._projection)
    drawn(pipe, count=8, sampler=sampler)
    assert (time.runs, time.rows) == (1, 12)  # 6 noise levels, two halves, for all 8 images
    assert context.runs == 2  # one for each text
    drawn(pipe, sampler=sampler, guidance=1.0)
    assert (time.runs, time.rows) == (2, 6)
    assert context.runs == 3
    pipe.close()


def test_the_next_request_replaces_what_the_last_one_was_told(opened: Opened) -> None:
    pipe = opened("xl", "both")
    _, first = drawn(pipe)
    _, other = drawn(pipe, negative_prompt=NEGATIVE, guidance=2.0)
    _, again = drawn(pipe)
    assert (first == again).all()
    assert np.abs(first - other).max() > 1e-3
    lcm = opened("lcm", "both")
    _, weak = drawn(lcm, guidance=2.0)
    _, strong = drawn(lcm, guidance=8.0)
    assert np.abs(weak - strong).max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_the_same_in_any_batch_place(opened: Opened, form: str) -> None:
    pipe = opened("xl", form)
    together = pipe(PROMPT, seed=3, count=6)
    for place in (0, 2, 5):
        alone = pipe(PROMPT, seed=3 + place).images[0]
        difference = np.asarray(alone, int) - np.asarray(together.images[place], int)
        assert np.abs(difference).max() <= 1  # products of other heights may sum in another order


@pytest.mark.parametrize(
    "asked",
    [{"negative_prompt": NEGATIVE}, {"guidance_rescale": 0.5}, {"guidance_interval": (0.3, 5.0)}],
)
def test_a_model_that_embeds_guidance_refuses_what_acts_through_two_answers(
    opened: Opened, asked: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="embeds the scale of guidance"):
        opened("lcm", "both")(PROMPT, **asked)
