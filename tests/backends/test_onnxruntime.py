from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sdfast import backends, compiled
from sdfast.backends import Options, onnxruntime
from sdfast.errors import BackendUnavailable, StoreWarning

from .test_engines import DEMO, tensors


def test_a_large_network_is_opened_from_the_store_as_it_was_optimized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "_WORTH_KEEPING", 1)
    options = Options(keep=lambda key, build: compiled.entry(tmp_path, key, build))
    found = []
    for kept in (Options(), options, options):
        engine = backends.open_engine(DEMO.network("unet"), "onnxruntime", kept)
        bound = tensors(2, 16)
        engine.bind(bound)
        engine.run()
        found.append(np.array(bound["noise"]))
    (folder,) = (f for f in (tmp_path / "engines").iterdir() if f.is_dir())
    assert {f.name for f in folder.iterdir()} == {"entry.json", "network.onnx", "network.weights"}
    assert (found[0] == found[1]).all()
    assert (found[1] == found[2]).all()


def test_small_networks_are_not_kept(tmp_path: Path) -> None:
    keep = Options(keep=lambda key, build: compiled.entry(tmp_path, key, build))
    backends.open_engine(DEMO.network("unet"), "onnxruntime", keep)
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_refused_with_the_way_out() -> None:
    with pytest.raises(BackendUnavailable, match="--backend openvino"):
        backends.precision("onnxruntime", "bf16")


def test_a_store_that_is_full_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "_WORTH_KEEPING", 1)

    def keep(key: Mapping[str, str], build: compiled.Build) -> Path | None:
        def gone(folder: Path) -> None:  # what is written has no place
            folder.rmdir()
            build(folder)

        return compiled.entry(tmp_path, key, gone)

    with pytest.warns(StoreWarning, match="cannot be written"):
        engine = backends.open_engine(DEMO.network("unet"), "onnxruntime", Options(keep=keep))
    bound = tensors(2, 16)
    engine.bind(bound)
    engine.run()
    assert np.isfinite(np.asarray(bound["noise"])).all()
