"""The Open Inference Protocol, as KServe's probes and Triton's clients speak it."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from sdfast.service import Service
from sdfast.service.http.app import app

PROMPT = "a small red circle on a white background"


def tensor(name: str, value: Any, datatype: str) -> dict[str, Any]:
    return {"name": name, "shape": [1], "datatype": datatype, "data": [value]}


SMALL = [
    tensor("prompt", PROMPT, "BYTES"),
    tensor("steps", 2, "INT32"),
    tensor("width", 64, "INT64"),
    tensor("height", 64, "INT32"),
]


def test_probes_find_the_service_and_its_model_ready(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/demo/ready", "/v2/models/demo/versions/1/ready"):
        assert client.get(path).json() == {"name": "demo", "ready": True}
    assert client.get("/v2").json()["name"] == "sdfast"


def test_a_service_that_has_not_started_lives_and_is_not_ready() -> None:
    client = TestClient(app(Service()), "http://127.0.0.1")
    assert client.get("/v2/health/live").status_code == 200
    for path in ("/v2/health/ready", "/v2/models/demo/ready"):
        assert client.get(path).status_code == 503
        assert client.get(path).json() == {"error": "the worker starts"}


def test_the_metadata_tells_inputs_and_outputs(client: httpx.Client) -> None:
    told = client.get("/v2/models/demo").json()
    assert told == client.get("/v2/models/demo/versions/1").json()
    assert told["name"] == "demo"
    assert told["inputs"][0] == {"name": "prompt", "datatype": "BYTES", "shape": [1]}
    assert [one["name"] for one in told["outputs"]] == ["image", "seed"]


@pytest.mark.parametrize("path", ["/v2/models/demo/infer", "/v2/models/demo/versions/1/infer"])
def test_inference_draws_what_the_pipeline_draws(
    client: httpx.Client, demo: Any, path: str
) -> None:
    inputs = [*SMALL, tensor("seed", 2**63 + 1, "UINT64"), tensor("count", 2, "INT32")]
    answer = client.post(path, json={"id": "a", "inputs": inputs}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("demo", "1", "a")
    image, seed = answer["outputs"]
    assert seed == {
        "name": "seed",
        "shape": [2],
        "datatype": "UINT64",
        "data": [2**63 + 1, 2**63 + 2],
    }
    assert (image["name"], image["shape"], image["datatype"]) == ("image", [2], "BYTES")
    alone = demo(PROMPT, seed=2**63 + 1, count=2, steps=2, width=64, height=64)
    for text, other in zip(image["data"], alone.images, strict=True):
        drawn = Image.open(io.BytesIO(base64.b64decode(text)))
        assert np.array_equal(np.asarray(drawn), np.asarray(other))


def test_outputs_that_are_wanted_alone_come(client: httpx.Client) -> None:
    sent = {"inputs": [*SMALL, tensor("seed", 3, "INT64")], "outputs": [{"name": "seed"}]}
    answer = client.post("/v2/models/demo/infer", json=sent).json()
    assert [one["data"] for one in answer["outputs"]] == [[3]]
    assert "id" not in answer


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "no prompt"),
        ([tensor("promt", "x", "BYTES")], "did you mean 'prompt'"),
        ([tensor("prompt", "x", "BYTES")] * 2, "given twice"),
        ([tensor("prompt", 3, "BYTES")], "it must be text"),
        ([*SMALL[:1], tensor("steps", 2.5, "INT32")], "it must be a whole number"),
        ([*SMALL[:1], tensor("steps", True, "INT32")], "it must be a whole number"),
        ([*SMALL[:1], tensor("steps", 2, "BYTES")], "it must be INT32"),
        ([*SMALL[:1], tensor("guidance", "7", "FP32")], "it must be a number"),
        ([*SMALL[:1], {**tensor("steps", 2, "INT32"), "shape": [2]}], "one element"),
        ([*SMALL[:1], {**tensor("steps", 2, "INT32"), "data": []}], "one element"),
        ([*SMALL[:1], tensor("image", "/etc/passwd", "BYTES")], "'image' is not known"),
        ([*SMALL[:1], tensor("steps", 0, "INT32")], "steps is 0"),
    ],
)
def test_inputs_that_are_wrong_are_named(
    client: httpx.Client, inputs: list[dict[str, Any]], said: str
) -> None:
    response = client.post("/v2/models/demo/infer", json={"inputs": inputs})
    assert response.status_code == 400, response.text
    assert set(response.json()) == {"error"}
    assert said in response.json()["error"]


def test_other_models_and_versions_are_not_there(client: httpx.Client) -> None:
    for path in ("/v2/models/deno", "/v2/models/demo/versions/2", "/v2/models/..%2fx/ready"):
        response = client.get(path)
        assert response.status_code == 404
        assert isinstance(response.json()["error"], str)
