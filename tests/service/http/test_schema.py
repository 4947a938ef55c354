"""What the schema says, tried by schemathesis: whatever is sent, nothing breaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from served import Serving

from sdfast.service.http.app import app

SETTINGS = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)


CHECKS = [not_a_server_error, response_schema_conformance]


@pytest.fixture(scope="module")
def said(serving: Serving) -> dict[str, Any]:
    """The schema."""
    return app(serving.service).openapi()


def test_nothing_that_is_sent_breaks_the_service(said: dict[str, Any], url: str) -> None:
    schema = schemathesis.openapi.from_dict(said)
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in modes(operation):

            @SETTINGS
            @given(case=operation.as_strategy(generation_mode=mode))
            def sent(case: schemathesis.Case) -> None:
                case.call_and_validate(base_url=url, checks=CHECKS, timeout=30)

            sent()
        tried += 1
    assert tried == sum(len(methods) for methods in said["paths"].values())


def modes(operation: Any) -> list[GenerationMode]:
    """What the schema says, and of bodies what it does not."""
    return [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if operation.body else [])]


def test_every_route_says_what_it_does(said: dict[str, Any]) -> None:
    for path, methods in said["paths"].items():
        for method, one in methods.items():
            assert one["summary"], (method, path)
            assert one["tags"], (method, path)


def test_every_test_that_the_table_of_faults_names_is_there() -> None:
    tests = Path(__file__).parents[2]
    table = (tests.parent / "docs" / "faults.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", table))
    there = {
        name
        for file in tests.rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert len(named) > 40
    assert named <= there
