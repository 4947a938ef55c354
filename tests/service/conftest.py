"""One service for all tests, and a server that asks for no key."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from served import Serving

from sdfast.service.http.settings import Settings


@pytest.fixture(scope="session")
def serving() -> Iterator[Serving]:
    made = Serving()
    yield made
    made.close()


@pytest.fixture(scope="session")
def url(serving: Serving) -> str:
    """Of a server that asks for no key."""
    return serving.over(Settings(heartbeat=0.2, write_seconds=2.0, body_seconds=2.0))


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    """Of that server."""
    with httpx.Client(base_url=url, timeout=30) as made:
        yield made
