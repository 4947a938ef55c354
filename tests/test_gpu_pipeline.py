"""Pictures by way of a GPU: the pipeline with plans of a GPU, on the stand-in that runs what is
enqueued on the CPU (devices/gpu_on_cpu.py), against the pipeline of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices.gpu_on_cpu import OnCpu, Recorded
from PIL import Image

import sdfast
from sdfast import backends, samplers, store
from sdfast.backends import Engine, Options
from sdfast.devices import cuda
from sdfast.errors import BackendUnavailable, Cancelled, InvalidRequest
from sdfast.export.demo import outlines
from sdfast.pipeline import Pipeline
from sdfast.request import Request
from sdfast.service.batcher import Batcher

open_engine = backends.open_engine
PICTURE = Image.radial_gradient("L").resize((128, 128)).convert("RGB")
MAP_OF_A_STAR = outlines.segmentation(outlines.Outline("star", 50, 70, 25))
MASK = Image.linear_gradient("L").resize((128, 128))


class Opened(Recorded):
    """A network of ONNX Runtime on the CPU, as if it ran on a GPU."""

    def __init__(self, engine: Engine, gpu: OnCpu, capturable: bool) -> None:
        super().__init__(engine, gpu, capturable)
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.close = engine.close


Made = Callable[..., Pipeline]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Made:
    def made(bundle: str = "demo", capturable: bool = True, **given: Any) -> Pipeline:
        gpu = OnCpu()

        def opened(file: Path, backend: str, options: Options) -> Opened:
            exact = Options(threads=1)
            return Opened(open_engine(file, "onnxruntime", exact), gpu, capturable)

        monkeypatch.setattr(backends, "open_engine", opened)
        options = Options(threads=1, precision="fp32", gpu=gpu)  # type: ignore[arg-type]
        return Pipeline(store.load(bundle), "onnxruntime", options, **given)

    return made


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[Pipeline]:
    pipe = sdfast.load("demo", "onnxruntime", "cpu", threads=1)
    yield pipe
    pipe.close()


def pixels(pipe: Pipeline, prompt: str = "a red circle on a blue background", **given: Any) -> Any:
    images = pipe(prompt, **{"seed": 0, **given}).images
    return np.stack([np.asarray(image) for image in images])


def test_requests_share_calls_on_a_gpu_too(on_gpu: Made, on_cpu: Pipeline) -> None:
    pipe = on_gpu(graphs="loop")
    requests = [
        Request("a red circle on a blue background", seed=1, steps=3),
        Request("a green star on a white background", seed=2, steps=5, sampler="euler"),
        Request("a blue square on a grey background", seed=3, steps=4, guidance=1.0),
    ]
    batcher, ends = Batcher(rows=16), dict[str, Any]()
    for k, request in enumerate(requests):
        assert batcher.join(str(k), pipe.drawing(request), 0, 0.0) is None
    rows = []
    while (tick := batcher.tick()) is not None:
        rows.append(tick.rows)
        ends |= dict(tick.ends)
    assert rows[:3] == [5, 5, 5]
    for k, request in enumerate(requests):
        (expected,), (found,) = on_cpu(request).images, ends[str(k)].images
        apart = np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max()
        assert apart <= 1


def test_every_sampler_draws_the_picture_of_the_cpu(on_gpu: Made, on_cpu: Pipeline) -> None:
    pipe = on_gpu()
    for name in samplers.names():
        given = {"sampler": name, "steps": 3, "seed": 5}
        expected, found = pixels(on_cpu, **given), pixels(pipe, **given)
        apart = np.abs(found.astype(int) - expected).max()
        # A sampler that depends on data may round its float64 latents to other float32 ones.
        assert apart <= (0 if samplers.get(name).static else 1), name


@pytest.mark.parametrize(
    "given",
    [
        {"count": 10, "steps": 2},  # a batch of 8 and one of 2
        {"guidance": 1.0},
        {"guidance_interval": (0.3, 3.0)},
        {"rng": "torch", "sampler": "euler_ancestral"},
        {"cache": 2, "steps": 5},
        {"width": 192, "height": 64},
        {"image": PICTURE, "strength": 0.7},
        {"image": PICTURE, "mask": MASK, "sampler": "dpmpp_2m_sde", "count": 2},
        {"image": PICTURE, "mask": MASK, "strength": 0.8, "cache": 2, "steps": 6},
        {"hires": {"scale": 1.5, "resize": "latent"}},
    ],
)
@pytest.mark.parametrize("graphs", ["program", "step", "eager"])
def test_requests_of_every_kind_draw_the_pictures_of_the_cpu(
    on_gpu: Made, on_cpu: Pipeline, given: dict[str, Any], graphs: str
) -> None:
    pipe, asked = on_gpu(graphs=graphs), {"steps": 3, "seed": 7, **given}
    expected = np.concatenate(
        [
            pixels(on_cpu, **{**asked, "count": 1, "seed": 7 + k})
            for k in range(asked.get("count", 1))
        ]
    )
    for _ in range(2):
        np.testing.assert_array_equal(pixels(pipe, **asked), expected)
    result = pipe("x", steps=3)
    assert result.form == graphs


def test_large_pictures_are_decoded_in_tiles(on_gpu: Made) -> None:
    expected = sdfast.load("demo", "onnxruntime", "cpu", threads=1, tile=64)
    given = {"width": 160, "height": 96, "steps": 2, "seed": 1}
    for _ in range(2):
        np.testing.assert_array_equal(pixels(on_gpu(tile=64), **given), pixels(expected, **given))


def test_words_change_without_another_graph(on_gpu: Made, on_cpu: Pipeline) -> None:
    pipe = on_gpu()
    for prompt in ("a red circle", "a blue star on a green background", "a red circle"):
        given = {"prompt": prompt, "steps": 3, "negative_prompt": "a square"}
        np.testing.assert_array_equal(pixels(pipe, **given), pixels(on_cpu, **given))
    assert pipe._opened.options.gpu.captures == 1  # type: ignore[union-attr]


def test_a_callback_is_told_and_cancels(on_gpu: Made) -> None:
    pipe, told = on_gpu(), list[tuple[int, int | None]]()

    def callback(done: int, evaluations: int | None) -> bool:
        told.append((done, evaluations))
        return done < 3

    with pytest.raises(Cancelled, match="3 of 6"):
        pipe("x", steps=6, callback=callback)
    assert told == [(1, 6), (2, 6), (3, 6)]


def test_networks_that_cannot_be_captured_are_said_to_be(on_gpu: Made, on_cpu: Pipeline) -> None:
    pipe = on_gpu(capturable=False)
    np.testing.assert_array_equal(pixels(pipe, steps=3), pixels(on_cpu, steps=3))
    assert pipe("x", steps=1).form == "eager"


def test_a_closed_pipeline_opens_again(on_gpu: Made, on_cpu: Pipeline) -> None:
    pipe = on_gpu()
    pixels(pipe, steps=2)
    pipe.close()
    np.testing.assert_array_equal(pixels(pipe, steps=2), pixels(on_cpu, steps=2))


@pytest.mark.parametrize(
    ("device", "word"),
    [("gpu", "unknown"), ("cuda:x", "unknown"), ("cpu:0", "unknown"), ("cuda0", "unknown")],
)
def test_a_device_of_another_name_is_refused(device: str, word: str) -> None:
    with pytest.raises(BackendUnavailable, match=word):
        sdfast.load("demo", device=device)


@pytest.mark.skipif(cuda.reason_unusable() is None, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(BackendUnavailable, match="driver"):
        sdfast.load("demo", device="cuda")
    assert sdfast.load("demo").device == "cpu"


def test_other_forms_of_graphs_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="program, step, eager"):
        sdfast.load("demo", graphs="whole")


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "a large [red|blue] circle on a white background"},
        {"prompt": "a red star AND a blue star:0.5", "count": 2},
        {"control": {"bundle": "demo-control", "image": MAP_OF_A_STAR, "end": 0.5}},
        {"image": PICTURE.resize((640, 128)), "width": 640, "height": 128, "strength": 0.5},
    ],
)
def test_what_no_graph_holds_is_run_by_the_host(
    on_gpu: Made, on_cpu: Pipeline, given: dict[str, Any]
) -> None:
    pipe, asked = on_gpu(), {"steps": 4, "seed": 7, **given}
    np.testing.assert_array_equal(pixels(pipe, **asked), pixels(on_cpu, **asked))
    assert pipe(**{"prompt": "x", **asked}).form == "loop"
    assert pipe("x", steps=1).form == "program"
