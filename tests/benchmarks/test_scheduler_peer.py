"""A step of sdfast beside a step of diffusers' scheduler of the same kind, with the same noise."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_step_takes_at_most_a_fifth_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOM))
    peer = importlib.import_module("scheduler_peer")
    ratios = {name: peer.compared(name, 15)["ratio"] for name in peer.PEERS}
    assert max(ratios.values()) <= 0.2, ratios
