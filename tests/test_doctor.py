from __future__ import annotations

from pathlib import Path

import pytest

from sdfast import doctor


def test_every_heading_is_answered() -> None:
    found = doctor.examine()
    assert list(found) == ["sdfast", "CPU", "backends", "GPU", "store"]
    assert all(fact for facts in found.values() for fact in facts.values())
    assert int(found["CPU"]["cores"]) >= 1
    assert "demo" in found["sdfast"]["bundles"]
    assert found["backends"]["onnxruntime"].startswith("usable, version")


def test_a_backend_that_is_not_installed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install onnxruntime" in doctor.examine()["backends"]["onnxruntime"]


def test_the_store_is_the_one_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDFAST_HOME", str(tmp_path / "a" / "b"))
    store = doctor.examine()["store"]
    assert store["folder"] == str(tmp_path / "a" / "b")
    assert store["writable"] == "yes"
