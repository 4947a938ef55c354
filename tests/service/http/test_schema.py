"""What the schema says, tried by schemathesis: whatever is sent, nothing breaks."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
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


@pytest.fixture(scope="module")
def said(serving: Serving) -> dict[str, Any]:
    """The schema."""
    return app(serving.service).openapi()


def test_nothing_that_is_sent_breaks_the_service(said: dict[str, Any], url: str) -> None:
    schema = schemathesis.openapi.from_dict(said)
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @SETTINGS
        @given(case=operation.as_strategy())
        def sent(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=url, checks=[not_a_server_error], timeout=30)

        sent()
        tried += 1
    assert tried == sum(len(methods) for methods in said["paths"].values())


def test_every_route_says_what_it_does(said: dict[str, Any]) -> None:
    for path, methods in said["paths"].items():
        for method, one in methods.items():
            assert one["summary"], (method, path)
            assert one["tags"], (method, path)
