"""Pictures with LoRA at run time beside those of bundles that they were merged into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import feeds
import numpy as np
import pytest
from numpy.typing import NDArray

from sdfast import backends, compiled, store
from sdfast.backends import Options
from sdfast.bundle import Bundle
from sdfast.errors import InvalidRequest
from sdfast.loras import Lora
from sdfast.loras.applied import applied
from sdfast.opened import Opened
from sdfast.pipeline import Pipeline
from sdfast.plans.host import CpuPlans
from sdfast.tensors import Tensor
from sdfast.variants import Variant

from .conftest import Merged

Picture = NDArray[np.uint8]
PROMPT = "a small yellow star on a striped purple background, top left"
DEMO = store.load("demo")


def drawn(pipeline: Pipeline, **parameters: Any) -> Picture:
    given = {"steps": 3, "seed": 5, "negative_prompt": "a large red circle"}
    return np.asarray(pipeline(PROMPT, **given, **parameters).images[0])


def use(pipeline: Pipeline, opened: Opened) -> None:
    """Has the pipeline draw with these engines from now on."""
    pipeline._variants.plain = Variant(opened, CpuPlans(opened, None))


def picture(bundle: Bundle, backend: str, *loras: Lora) -> Picture:
    """Of a bundle with these LoRA."""
    pipeline = Pipeline(bundle, backend, Options(precision="fp32"))
    if loras:
        use(pipeline, pipeline._opened.with_loras(applied(bundle, loras)))
    found = drawn(pipeline)
    pipeline.close()
    return found


@pytest.fixture(params=["onnxruntime", "openvino", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    if reason := backends.usable()[request.param]:
        pytest.skip(reason)
    return str(request.param)


def levels(one: Picture, other: Picture) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_a_weight_beyond_what_a_lora_may_have_is_told_with_its_column(ink: Lora) -> None:
    pipeline = Pipeline(DEMO, "onnxruntime", Options(precision="fp32"), lora_dir=ink.file.parent)
    with pytest.raises(InvalidRequest, match=r"^the prompt, column 8: a LoRA's weight is -10 to"):
        pipeline("a star <lora:ink:20>")


def test_a_lora_draws_what_it_draws_merged(backend: str, ink: Lora, merged: Merged) -> None:
    found = picture(DEMO, backend, ink)
    assert levels(found, picture(merged(ink), backend)) == 0
    assert levels(found, picture(DEMO, backend)) > 50


def test_two_draw_what_they_draw_merged(backend: str, ink: Lora, fog: Lora, merged: Merged) -> None:
    # Merged, a weight is rounded to float16 after each; here after both.
    found = picture(DEMO, backend, ink, fog)
    assert levels(found, picture(merged(ink, fog), backend)) <= 1
    assert levels(found, picture(DEMO, backend, ink)) > 50


def test_engines_are_switched_and_come_back(backend: str, ink: Lora, fog: Lora) -> None:
    pipeline = Pipeline(DEMO, backend, Options(precision="fp32"))
    plain = pipeline._opened
    sets = {
        "plain": plain,
        "ink": plain.with_loras(applied(DEMO, [ink])),
        "fog": plain.with_loras(applied(DEMO, [fog])),
    }
    first: dict[str, Picture] = {}
    for name in ("plain", "ink", "fog", "ink", "plain"):
        before = dict(sets[name]._engines)
        use(pipeline, sets[name])
        found = drawn(pipeline)
        assert np.array_equal(found, first.setdefault(name, found))
        assert all(sets[name]._engines[network] is engine for network, engine in before.items())
    assert len({found.tobytes() for found in first.values()}) == 3


def test_networks_that_are_not_changed_are_shared(ink: Lora, fog: Lora) -> None:
    plain = Opened(DEMO, "onnxruntime", Options(precision="fp32"))
    inked, fogged = (plain.with_loras(applied(DEMO, [lora])) for lora in (ink, fog))
    assert inked["vae_decoder"] is plain["vae_decoder"]
    assert fogged["text_encoder"] is plain["text_encoder"] is not inked["text_encoder"]
    for network in ("unet", "context_projection", "time_projection", "unet_shallow"):
        assert len({id(opened[network]) for opened in (plain, inked, fogged)}) == 3
    # One after the other: never a LoRA on the networks of another.
    assert fogged.with_loras(applied(DEMO, [ink]))["vae_decoder"] is plain["vae_decoder"]
    assert fogged.with_loras(applied(DEMO, [ink]))["text_encoder"] is not inked["text_encoder"]
    inked.close()
    assert plain["vae_decoder"] is fogged["vae_decoder"]


def test_with_low_memory_networks_are_opened_again_with_the_lora(ink: Lora) -> None:
    expected = picture(DEMO, "onnxruntime", ink)
    pipeline = Pipeline(DEMO, "onnxruntime", Options(precision="fp32", low_memory=True))
    use(pipeline, pipeline._opened.with_loras(applied(DEMO, [ink])))
    for _ in range(2):
        assert np.array_equal(drawn(pipeline), expected)


def test_step_caching_has_the_lora_in_both_of_its_networks(ink: Lora, merged: Merged) -> None:
    there = Pipeline(merged(ink), "onnxruntime", Options(precision="fp32"))
    here = Pipeline(DEMO, "onnxruntime", Options(precision="fp32"))
    use(here, here._opened.with_loras(applied(DEMO, [ink])))
    assert levels(drawn(here, cache=2), drawn(there, cache=2)) == 0


@pytest.fixture
def keep(tmp_path: Path) -> tuple[Callable[..., Path | None], list[str]]:
    """A store, and the names of what was built there so far."""
    built: list[str] = []

    def kept(key: dict[str, str], build: Callable[[Path], None]) -> Path | None:
        def counted(folder: Path) -> None:
            built.append(key["backend"])
            build(folder)

        return compiled.entry(tmp_path, key, counted)

    return kept, built


def test_no_compiled_network_is_kept_with_other_weights(
    keep: tuple[Callable[..., Path | None], list[str]], ink: Lora
) -> None:
    if reason := backends.usable()["openvino"]:
        pytest.skip(reason)
    kept, built = keep
    pipeline = Pipeline(DEMO, "openvino", Options(precision="fp32", keep=kept))
    drawn(pipeline)
    count = len(built)
    assert count > 3
    use(pipeline, pipeline._opened.with_loras(applied(DEMO, [ink])))
    found = drawn(pipeline)
    assert len(built) == count
    assert levels(found, picture(DEMO, "openvino", ink)) == 0


@pytest.mark.slow
def test_a_network_compiled_by_pytorch_serves_every_lora(
    keep: tuple[Callable[..., Path | None], list[str]], ink: Lora
) -> None:
    if reason := backends.usable()["torch"]:
        pytest.skip(reason)
    kept, built = keep
    plain = Opened(DEMO, "torch", Options(precision="fp32", keep=kept))
    inked = plain.with_loras(applied(DEMO, [ink]))
    portable = Opened(DEMO, "onnxruntime", Options(precision="fp32"))
    network = DEMO.manifest.networks["unet_shallow"]
    given = feeds.feed(network.inputs)
    noise = np.zeros((feeds.ROWS, 4, feeds.HEIGHT, feeds.WIDTH), np.float32)
    tensors = {n: Tensor.from_dlpack(a) for n, a in {**given, "noise": noise}.items()}
    found = []
    for opened in (plain, inked, portable.with_loras(applied(DEMO, [ink]))):
        engine = opened["unet_shallow"]
        engine.bind(tensors)
        engine.run()
        found.append(noise.copy())
    assert built == ["torch"]
    np.testing.assert_allclose(found[1], found[2], atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1
