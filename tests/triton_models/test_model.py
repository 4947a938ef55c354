"""The model that Triton runs, as it runs it: from its folder, by its configuration."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_python_backend_utils as triton

import sdfast
from sdfast import store
from sdfast.errors import EngineError
from sdfast.triton import export

from .schema import SCHEMA, as_json, parsed

QUICK = {"prompt": "a red star", "steps": 2, "width": 64, "height": 64}
EXACT = {"backend": "onnxruntime"}


class Server:
    """Checks and passes on what Triton does."""

    def __init__(self, folder: Path) -> None:
        self._config = parsed(folder)
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.model = module.TritonPythonModel()
        args = {
            "model_config": as_json(self._config),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_repository": str(folder),
            "model_version": "1",
            "model_name": self._config.name,
        }
        self.model.initialize(args)

    def request(
        self, given: dict[str, Any], cancelled: Callable[[], bool] = lambda: False
    ) -> triton.InferenceRequest:
        """A request of a client, refused where its inputs are not those of the configuration."""
        known = {one.name: one for one in self._config.input}
        assert set(given) <= set(known)
        assert {name for name, one in known.items() if not one.optional} <= set(given)
        tensors = []
        for name, value in given.items():
            kind = triton.TYPES[SCHEMA.DataType.Name(known[name].data_type)]
            value = value.encode() if isinstance(value, str) else value
            tensors.append(triton.Tensor(name, np.array([value], kind)))
            assert list(known[name].dims) == [1]
        return triton.InferenceRequest(tensors, cancelled)

    def answers(self, *requests: triton.InferenceRequest) -> list[triton.InferenceResponse]:
        """Those of the model, one for each request, with outputs as they are configured."""
        found = self.model.execute(list(requests))
        assert len(found) == len(requests)
        for answer in found:
            if answer.has_error():
                continue
            outputs = {tensor.name(): tensor.as_numpy() for tensor in answer.output_tensors()}
            assert set(outputs) == {one.name for one in self._config.output}
            for one in self._config.output:
                array = outputs[one.name]
                assert array.dtype == triton.TYPES[SCHEMA.DataType.Name(one.data_type)]
                assert len(array.shape) == len(one.dims)
                assert all(d in (-1, s) for s, d in zip(array.shape, one.dims, strict=True))
        return found


def outputs(answer: triton.InferenceResponse) -> tuple[Any, int]:
    assert answer.error() is None, answer.error().message()
    image, seed = answer.output_tensors()
    return image.as_numpy(), int(seed.as_numpy()[0])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    (made,) = export(store.load("demo"), folder, parameters=EXACT)
    server = Server(made)
    yield server
    server.model.finalize()


def test_its_picture_is_the_one_that_the_pipeline_draws(
    server: Server, demo: sdfast.Pipeline
) -> None:
    asked = {
        **QUICK,
        "negative_prompt": "blåt",
        "seed": 2**64 - 1,
        "sampler": "Euler a",
        "schedule": "exponential",
        "guidance": 7.1,
    }
    (answer,) = server.answers(server.request(asked))
    image, seed = outputs(answer)
    assert seed == asked["seed"]
    expected = demo(sdfast.Request(**asked))
    assert np.array_equal(image, np.asarray(expected.images[0]))


def test_what_is_left_out_is_the_bundles_and_the_seed_is_told(
    server: Server, demo: sdfast.Pipeline
) -> None:
    (answer,) = server.answers(server.request({"prompt": "a green ring"}))
    image, seed = outputs(answer)
    assert image.shape == (128, 128, 3)
    assert np.array_equal(image, np.asarray(demo("a green ring", seed=seed).images[0]))


def test_each_request_has_its_answer_and_a_mistake_is_of_one_alone(server: Server) -> None:
    good = {**QUICK, "seed": 1}
    wrong = {**good, "sampler": "eulr"}
    found = server.answers(*map(server.request, (good, wrong, {**good, "width": 65}, good)))
    first, last = (outputs(found[k])[0] for k in (0, 3))
    assert np.array_equal(first, last)
    for k, word in ((1, "did you mean 'euler'"), (2, "width is 65")):
        error = found[k].error()
        assert error.code() == triton.TritonError.INVALID_ARG
        assert word in error.message()


def test_an_engine_that_fails_is_no_mistake_of_the_client(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise EngineError("no memory is left")

    monkeypatch.setattr(server.model, "_pipeline", failing)
    (answer,) = server.answers(server.request(QUICK))
    assert answer.error().code() == triton.TritonError.INTERNAL
    assert answer.error().message() == "no memory is left"


def test_text_that_is_no_utf8_is_refused(server: Server) -> None:
    (answer,) = server.answers(server.request({**QUICK, "prompt": b"\xff\xfe"}))
    assert answer.error().code() == triton.TritonError.INVALID_ARG
    assert "prompt is no UTF-8" in answer.error().message()


def test_a_request_that_is_cancelled_stops_at_the_next_step(server: Server) -> None:
    asked = itertools.count(1)
    request = server.request({**QUICK, "steps": 50, "seed": 1}, lambda: next(asked) > 2)
    cancelled, after = server.answers(request, server.request({**QUICK, "seed": 1}))
    assert cancelled.error().code() == triton.TritonError.CANCELLED
    assert next(asked) == 4  # it was asked three times, and not again
    assert outputs(after)[0].shape == (64, 64, 3)
