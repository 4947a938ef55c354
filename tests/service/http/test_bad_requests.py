"""What is asked for and cannot be: refused by its name, in each dialect alike."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import httpx
import pytest

OWN, OPENAI = "/v1/generate", "/v1/images/generations"
PROMPT = {"prompt": "a small red circle", "steps": 1}


def error(answer: httpx.Response) -> dict[str, Any]:
    """Of an answer in OpenAI's shape, which names nothing of the machine."""
    told = answer.json()
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "type", "param", "code"}
    message = told["error"]["message"]
    assert "Traceback" not in message
    assert "site-packages" not in message
    assert " at 0x" not in message
    return dict(told["error"])


def asked(path: str, **fields: Any) -> dict[str, Any]:
    """A body of that route: width, height and count are size and n where OpenAI has them."""
    body = {**PROMPT, **fields}
    if path == OPENAI:
        sides = body.pop("width", None), body.pop("height", None)
        if sides != (None, None):
            body["size"] = f"{sides[0] or 64}x{sides[1] or 64}"
        if "count" in body:
            body["n"] = body.pop("count")
    return body


@pytest.mark.parametrize("path", [OWN, OPENAI])
@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *(("width", value, "from 64 to 512") for value in (1, 7, 513)),
        ("width", 65, "multiple of 32 pixels: try 64 or 96"),
        ("height", 10**6 + 1, ""),
        ("count", 0, "from 1"),
        ("count", 5, "up to 4"),
        ("count", 2**31, ""),
        ("steps", 0, "from 1"),
        ("steps", 201, "up to 200"),
        ("steps", -1, "from 1"),
        ("guidance", -1.0, "from 0"),
        ("guidance", 1e30, "to 100"),
        ("seed", -2, "from 0"),
        ("seed", 2**64, "to 18446744073709551615"),
        ("sampler", "eulr", "did you mean"),
        ("schedule", "karas", "did you mean"),
        ("clip_skip", 99, "from 0"),
        ("rng", "numpy", "philox"),
        ("strength", 0.5, "image"),
        ("deadline", -1.0, "greater than 0"),
        ("hires", {"scale": 9}, "scale"),
        ("hires", {"image": "/etc/passwd"}, "hires"),
        ("cache", [], "cache"),
        ("sampler_parameters", {"eta": "x"}, "eta"),
        ("sampler_parameters", {"nonsense": 1}, "nonsense"),
        ("sigmas", [1.0, 2.0], "sigmas|steps"),
        ("guidance_interval", [2.0, 1.0], "guidance_interval"),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_rule(
    client: httpx.Client, path: str, name: str, value: Any, rule: str
) -> None:
    answer = client.post(path, json=asked(path, **{name: value}))
    assert answer.status_code == 400, answer.text
    assert re.search(rule, error(answer)["message"]), answer.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("width", value) for value in (0, -8, 10**9)),
        *(("width", value) for value in ("64", 512.5, True, [64], {})),
        *(("steps", value) for value in ("8", 1.5, True, [])),
        *(("seed", value) for value in (1.5, "abc", "7", True)),
        *(("guidance", value) for value in ("7", [7], {})),
        *(("prompt", value) for value in (None, 1, ["a"], {"a": 1})),
        *(("count", value) for value in (1.0001, "2", False)),
        ("format", "gif"),
        ("quality", 101),
        ("preview_every", 0),
        ("priority", 1),
        ("cuda_device", 0),
        ("backend", "torch"),
        ("lora_dir", "/"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(
    client: httpx.Client, name: str, value: Any
) -> None:
    answer = client.post(OWN, json={**PROMPT, name: value})
    assert answer.status_code == 400, answer.text
    assert (error(answer)["param"] or "").split(".")[0] == name


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "1" * 5000])
@pytest.mark.parametrize("name", ["guidance", "width", "seed"])
def test_what_is_no_number_is_refused(client: httpx.Client, name: str, literal: str) -> None:
    body = f'{{"prompt": "a", "{name}": {literal}}}'
    answer = client.post(OWN, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"prompt"',
        b'{"prompt": "a",}',
        b'{"prompt": "a"} trailing',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "\xff\xfe"}',
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"prompt": "a", "hires": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    ],
    ids=range(13),
)
@pytest.mark.parametrize("path", [OWN, OPENAI])
def test_a_body_that_is_no_json_object_is_refused(
    client: httpx.Client, path: str, body: bytes
) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error(answer)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_json_of_another_content_type_is_refused(client: httpx.Client, kind: str | None) -> None:
    """A page of elsewhere can send those without being asked whether it may."""
    headers = {} if kind is None else {"content-type": kind}
    answer = client.post(OWN, content=json.dumps(PROMPT), headers=headers)
    assert answer.status_code == 400
    assert "application/json" in error(answer)["message"]


@pytest.mark.parametrize(
    "prompt",
    [
        "مرحبا بالعالم",
        "👩‍👩‍👧‍👦 family",
        "(" * 4000,
        "(a:-5)",
        "[a:b:0.5]",
        "(x:nan)",
        "(x:1e30)",
        "a\n\tb",
        "x" * 8000,
    ],
)
def test_a_prompt_of_any_text_is_drawn_or_refused_in_a_sentence(
    client: httpx.Client, prompt: str
) -> None:
    answer = client.post(OWN, json={**PROMPT, "prompt": prompt}, timeout=10)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert error(answer)["message"]


@pytest.mark.parametrize(
    ("prompt", "status"),
    [
        ('""', 400),
        ('"   "', 400),
        ('"a\\u0000b"', 400),
        ('"\\ud800"', 400),
        ('"<lora:../../etc/passwd:1>"', 400),
        ('"<lora:/etc/passwd:1>"', 400),
        (f'"{"x" * 8001}"', 413),
        (f'"{"(" * 900_000}"', 413),
        (f'"{"[a:b:1e999]" * 700}"', 400),
    ],
    ids=range(9),
)
def test_a_prompt_that_cannot_be_is_refused(client: httpx.Client, prompt: str, status: int) -> None:
    body = f'{{"prompt": {prompt}, "steps": 1}}'.encode()
    answer = client.post(OWN, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error(answer)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "%2e%2e/x", "demo\0", "C:\\x", "\\\\h\\s", "", "a" * 9999]
)
def test_a_model_is_one_that_is_served_and_no_path(client: httpx.Client, name: str) -> None:
    for path in (OWN, OPENAI):
        answer = client.post(path, json={**PROMPT, "model": name})
        assert answer.status_code == 404
        assert error(answer)["code"] == "model_not_found"
        assert len(answer.text) < 400


class Opened:
    """The paths that this process opens, where it listens: hooks cannot be taken out again."""

    def __init__(self) -> None:
        self.paths: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.paths is not None and event in ("open", "os.listdir", "os.scandir"):
            self.paths.append(str(arguments[0]))


def test_nothing_that_a_request_names_is_opened(client: httpx.Client) -> None:
    client.post(OWN, json={**PROMPT, "image": "AAAA"})  # what is imported late is
    opened = Opened()
    for name in ("../../etc/passwd", "/etc/passwd", "/etc/passwd\0.png", "~/x", "//h/s"):
        for fields in (
            {"model": name},
            {"prompt": f"<lora:{name}:1>"},
            {"sampler": name},
            {"schedule": name},
            {"image": name},
            {"image": name, "mask": name},
            {"control": [{"bundle": name, "image": name}]},
            {"hires": {"sampler": name}},
            {"rng": name},
        ):
            opened.paths = []
            answer = client.post(OWN, json={**PROMPT, **fields})
            assert answer.status_code in (400, 404), (fields, answer.text)
            assert opened.paths == [], fields
    opened.paths = None


@pytest.mark.parametrize("path", [OWN, OPENAI])
def test_an_unknown_field_is_refused_by_its_name_everywhere(
    client: httpx.Client, path: str
) -> None:
    for name in ("upscaling_model_path", "Prompt", "x" * 5000):
        answer = client.post(path, json={**PROMPT, name: 1})
        assert answer.status_code == 400
        assert error(answer)["param"] == name
        assert len(error(answer)["message"]) < 200


def test_a_random_seed_is_told(client: httpx.Client) -> None:
    for given in ({}, {"seed": -1}, {"seed": None}):
        said = client.post(OWN, json={**PROMPT, **given}).json()
        again = client.post(OWN, json={**PROMPT, "seed": said["seeds"][0]}).json()
        assert said["images"][0]["b64_json"] == again["images"][0]["b64_json"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", OWN, 405),
        ("PUT", OPENAI, 405),
        ("TRACE", "/healthz", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/../../etc/passwd", 404),
        ("POST", "/v1/images/variations", 404),
        ("DELETE", "/v1/requests/nobody", 404),
    ],
)
def test_what_is_not_there_is_said_in_the_same_shape(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    error(answer)
