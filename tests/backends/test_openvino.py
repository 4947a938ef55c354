from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sdfast import backends, compiled
from sdfast.backends import Options, openvino
from sdfast.errors import BackendUnavailable

from .test_engines import DEMO, EXACT, tensors


def noise(options: Options, rows: int = 2, side: int = 16) -> np.ndarray:
    engine = backends.open_engine(DEMO.network("unet"), "openvino", options)
    bound = tensors(rows, side)
    engine.bind(bound)
    engine.run()
    return np.array(bound["noise"])


def test_bfloat16_rounds_and_is_chosen_where_the_cpu_has_it() -> None:
    exact, auto = noise(EXACT), noise(Options())
    apart = np.abs(exact - auto).max() / np.abs(exact).max()
    if openvino.precision("auto") == "bf16":
        assert 1e-4 < apart < 5e-2
    else:
        assert apart == 0
        with pytest.raises(BackendUnavailable, match="--precision fp32"):
            openvino.precision("bf16")


def test_rows_side_by_side_are_the_same_rows() -> None:
    one = noise(EXACT, 4)
    for threads in (1, 2, 3, 4):
        engine = backends.open_engine(
            DEMO.network("unet"), "openvino", Options(precision="fp32", threads=threads)
        )
        assert isinstance(engine, openvino.OpenVinoEngine)
        beside = []
        for alone in (True, False):
            bound = tensors(4, 16)
            engine.run_rows(bound, alone)
            beside.append(np.array(bound["noise"]))
            assert np.abs(beside[-1] - one).max() < 1e-4 * np.abs(one).max()
        assert (beside[0] == beside[1]).all()


def test_what_is_kept_is_opened_and_computes_the_same(tmp_path: Path) -> None:
    made = []

    def keep(key: dict[str, str], build: compiled.Build) -> Path | None:
        def counted(folder: Path) -> None:
            made.append(key)
            build(folder)

        return compiled.entry(tmp_path, key, counted)

    kept = Options(precision="fp32", keep=keep)  # type: ignore[arg-type]
    first, again = noise(kept), noise(kept)
    assert len(made) == 1
    assert (first == again).all()
    assert (first == noise(EXACT)).all()
    noise(kept, rows=3)  # other shapes are another compiled form
    assert len(made) == 2
    (one, two) = (
        json.loads((f / "entry.json").read_text()) for f in (tmp_path / "engines").glob("[!.]*")
    )
    assert one["key"]["shapes"] != two["key"]["shapes"]
    assert one["key"]["INFERENCE_PRECISION_HINT"] == "f32"


def test_the_compiled_forms_of_the_latest_two_shapes_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = openvino.open(DEMO.network("unet"), EXACT)
    for rows in (1, 2, 3):
        small.bind(tensors(rows, 8))
    assert len(small._compiled) == 3
    monkeypatch.setattr(openvino, "_SMALL", 0)
    engine = openvino.open(DEMO.network("unet"), EXACT)
    for rows in (1, 2, 1, 3):
        engine.bind(tensors(rows, 8))
    assert [shapes[0][1][0] for shapes, _ in engine._compiled] == [1, 3]
    spared = openvino.open(DEMO.network("unet"), Options(precision="fp32", low_memory=True))
    for rows in (1, 2):
        spared.bind(tensors(rows, 8))
    assert len(spared._compiled) == 1
