"""What a picture says of how it was drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import sdfast
from sdfast import checksums, cpu, provenance, store
from sdfast.canvas import told
from sdfast.provenance import Inputs, Origin, Provenance
from sdfast.request import Request


def test_the_origin_is_the_pipeline_and_the_machine(demo: sdfast.Pipeline) -> None:
    import onnxruntime

    found = Origin.of(demo, tile=64)
    assert (found.bundle, found.backend, found.precision) == ("demo", "onnxruntime", "fp32")
    assert found.backend_version == onnxruntime.__version__
    assert (found.device, found.machine) == ("cpu", cpu.model())
    assert (found.threads, found.tile, found.throughput) == (cpu.cores(), 64, False)
    assert found.bundle_digest == checksums.sha256(store.find("demo") / "bundle.json")


def test_it_goes_to_json_and_back(demo: sdfast.Pipeline) -> None:
    made = Provenance(Origin.of(demo), Inputs({"image": "sha256:1"}, {"c": "2"}, {"ink": "3"}), 2)
    raw = json.loads(json.dumps(made.to_dict()))
    assert Provenance.from_dict(raw) == made
    with pytest.raises(ValueError, match="place is 2 among 2"):
        Provenance.from_dict({**raw, "place": 2})
    with pytest.raises(ValueError, match="together"):
        Provenance.from_dict({**raw, "together": True})


def test_inputs_are_told_by_their_pixels(tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").convert("RGB")
    for name in ("a.png", "b.tiff"):
        picture.save(tmp_path / name)
    mask = Image.new("L", picture.size, 255)
    request = Request("x", image=str(tmp_path / "a.png"), mask=mask)
    found = provenance.inputs(request)
    assert found == Inputs({"image": told(picture), "mask": told(mask)}, {}, {})
    assert provenance.inputs(replace(request, image=str(tmp_path / "b.tiff"))) == found
    assert provenance.inputs(replace(request, image=picture)) == found


def test_controls_are_their_bundles_and_maps(tmp_path: Path) -> None:
    maps = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    control = [
        {"bundle": "demo-control", "image": maps[0]},
        {"bundle": "demo-control", "image": maps},
    ]
    found = provenance.inputs(Request("x", control=control))
    digest = checksums.sha256(store.find("demo-control") / "bundle.json")
    assert found.bundles == {"demo-control": digest}
    assert found.pictures["control 0"] == told(maps[0])
    assert found.pictures["control 1"] not in map(told, maps)
    turned = [control[0], {**control[1], "image": maps[::-1]}]
    other = provenance.inputs(Request("x", control=turned))
    assert other.pictures["control 1"] != found.pictures["control 1"]


def test_loras_of_both_passes_are_those_files(tmp_path: Path) -> None:
    for name in ("ink", "wash", "unused"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    request = Request("x <lora:ink:1>", hires={"scale": 2, "prompt": "y <lora:wash:0.5>"})
    assert provenance.inputs(request, [tmp_path]).loras == {
        name: checksums.sha256(tmp_path / f"{name}.safetensors") for name in ("ink", "wash")
    }
