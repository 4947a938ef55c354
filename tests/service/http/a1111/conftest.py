"""What the tests of this dialect share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import webuiapi

from sdfast import Request


@pytest.fixture
def api(url: str) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1")


@pytest.fixture
def asked(serving: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Request, Any]]]:
    """The requests that the service was given, and for which model; it draws them as ever."""
    found: list[tuple[Request, Any]] = []
    submit = serving.service.submit

    async def seen(request: Request, **more: Any) -> Any:
        found.append((request, more.get("model")))
        return await submit(request, **more)

    monkeypatch.setattr(serving.service, "submit", seen)
    return found
