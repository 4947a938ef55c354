from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sdfast
from sdfast import bundle, networks, store
from sdfast.errors import BundleError, InvalidRequest


def test_the_demo_bundle_is_found_by_name_and_by_path() -> None:
    by_name, by_path = store.load("demo"), store.load(store.find("demo"))
    assert by_name == by_path
    assert by_name.name == "demo"
    assert by_name.manifest.task == "text"
    assert set(by_name.manifest.networks) <= set(networks.NETWORKS)


def test_the_demo_bundle_is_small_enough_for_git() -> None:
    size = sum(f.stat().st_size for f in store.find("demo").rglob("*") if f.is_file())
    assert size <= 8_000_000


def test_a_bundle_in_the_store_is_found_by_name(
    copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SDFAST_HOME", str(tmp_path))
    (tmp_path / "bundles").mkdir()
    copied.rename(tmp_path / "bundles" / "mine")
    assert store.load("mine").path == tmp_path / "bundles" / "mine"
    assert store.names() == ("demo", "demo-control", "mine")


@pytest.mark.parametrize("name", ["dmo", "", "/nowhere/at/all", "../demo", "."])
def test_a_missing_bundle_lists_those_that_are_there(name: str) -> None:
    with pytest.raises(BundleError, match="known: demo"):
        store.find(name)


def test_what_is_written_is_what_is_read(copied: Path) -> None:
    manifest = bundle.load(copied).manifest
    bundle.write(copied, manifest)
    assert bundle.load(copied).manifest == manifest


def change(copied: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = copied / "bundle.json"
    raw = json.loads(file.read_text())
    edit(raw)
    file.write_text(json.dumps(raw))


def test_a_bundle_of_before_there_were_previews_is_read(copied: Path) -> None:
    whole = bundle.load(copied).manifest
    assert whole.preview is not None
    change(copied, lambda raw: raw.pop("preview"))
    assert bundle.load(copied).manifest == replace(whole, preview=None)


def rename(raw: dict[str, Any], network: str, old: str, new: str) -> None:
    """An input of a network under another name."""
    inputs = raw["networks"][network]["inputs"]
    inputs[new] = inputs.pop(old)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda raw: raw.update(schema_version=99), "schema version 99; this sdfast reads 2"),
        (lambda raw: raw.update(schema_version=1), "schema version 1; .*export the checkpoint"),
        (lambda raw: raw.pop("sizes"), "sizes"),
        (lambda raw: raw.update(extra=1), "extra"),
        (lambda raw: raw["sizes"].update(width="128"), "sizes.width is str"),
        (lambda raw: raw["sizes"].update(width=130), "default size"),
        (lambda raw: raw["sizes"].update(multiple=0), "not positive"),
        (lambda raw: raw["betas"].update(start=-1.0), "betas"),
        (lambda raw: raw["betas"].update(start=0.5, end=0.99), "some signal"),
        (lambda raw: raw["betas"].update(name="cosine"), "'cosine' is unknown"),
        (lambda raw: raw["betas"].update(zero_terminal_snr=1), "zero_terminal_snr is int"),
        (lambda raw: raw.update(prediction="flow"), "epsilon, v_prediction"),
        (lambda raw: raw["networks"].pop("unet"), "lacks unet"),
        (lambda raw: raw["networks"]["unet"].update(file="other.onnx"), "files lacks"),
        (lambda raw: raw["networks"]["unet"].update(weights=["x"]), "files lacks"),
        (lambda raw: raw["networks"]["unet"].update(weights="x"), "unet.weights is str"),
        (lambda raw: raw["networks"]["unet"].update(precision="int4"), "fp32, fp16, bf16, int8"),
        (lambda raw: raw["networks"]["unet"]["graph"]["plain"].update(Add="7"), "plain.Add is str"),
        (lambda raw: raw["networks"].update(refiner=raw["networks"]["unet"]), "has refiner; known"),
        (lambda raw: raw["networks"].pop("text_encoder"), "lacks a text encoder"),
        (lambda raw: raw["tokenizers"]["text_encoder"].update(file="x.json"), "files lacks"),
        (lambda raw: raw["tokenizers"].clear(), "tokenizers must name the text encoders"),
        (lambda raw: raw.update(family="flux"), "family must be one of sd1, sd2, sdxl"),
        (lambda raw: raw.update(task="video"), "task must be one of text"),
        (lambda raw: raw.update(task="control"), "lacks controlnet"),
        (lambda raw: raw.update(notes=[1]), "notes is int"),
        (lambda raw: raw["preview"]["weights"].pop(), "three rows of a weight for each channel"),
        (lambda raw: raw["preview"]["weights"][1].append(1.0), "three rows of a weight"),
        (lambda raw: raw["preview"].update(bias=[0.0]), "and three of bias"),
        (lambda raw: raw["preview"].update(bias=[0.0, math.nan, 0.0]), "preview must be finite"),
        (lambda raw: raw["preview"].update(scale=0), "scale must be above 0"),
        (lambda raw: raw["preview"].pop("bias"), r"preview lacks or has too many of \['bias'\]"),
        (lambda raw: raw.update(context=None), "context is missing, which task text needs"),
        (lambda raw: raw.update(defaults=None), "defaults is missing"),
        (lambda raw: raw["context"].update(tokens="77"), "context.tokens is str"),
        (lambda raw: raw["context"].update(pooled=0), "context must be positive"),
        (lambda raw: raw["context"].update(pooled=64), "must write pooled"),
        (lambda raw: raw["context"].update(width=95), "not context.width wide"),
        (lambda raw: rename(raw, "unet", "time", "timestep"), "unet must read time where"),
        (lambda raw: rename(raw, "unet", "keys_values", "context"), "context_projection, which"),
        (lambda raw: rename(raw, "unet", "keys_values", "image"), "unet reads image, which"),
        (lambda raw: raw["networks"]["unet"]["inputs"].pop("time"), "must read timestep or"),
        (lambda raw: rename(raw, "unet", "latent", "pooled"), "pooled is not of"),
        (lambda raw: rename(raw, "unet", "latent", "sizes"), "sizes must be 5 or 6"),
        (
            lambda raw: raw["networks"]["unet"]["outputs"].pop("features"),
            "features that unet writes",
        ),
        (
            lambda raw: raw["networks"]["unet_shallow"]["inputs"].pop("features"),
            "must read the feat",
        ),
        (lambda raw: raw["networks"]["unet_shallow"]["inputs"].pop("latent"), "must read latent"),
        (lambda raw: rename(raw, "unet_shallow", "time", "timestep"), "that unet does not read"),
        (lambda raw: rename(raw, "unet_shallow", "time", "tokens"), "unet_shallow reads tokens"),
        (lambda raw: raw["networks"]["unet_shallow"]["outputs"].clear(), "must write the noise"),
        (lambda raw: raw["files"].update({"../x": "0"}), "leads out"),
        (lambda raw: raw["files"].update({"/etc/passwd": "0"}), "leads out"),
        (lambda raw: raw["networks"]["unet"]["inputs"]["latent"].update(shape="x"), "shape"),
    ],
)
def test_a_manifest_that_is_wrong_says_where(
    copied: Path, edit: Callable[[dict[str, Any]], object], word: str
) -> None:
    change(copied, edit)
    with pytest.raises(BundleError, match=word):
        bundle.load(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00", "[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_refused(copied: Path, text: str) -> None:
    (copied / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        bundle.load(copied)


def test_a_changed_byte_is_noticed_before_anything_runs(copied: Path) -> None:
    file = copied / "unet.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"unet\.safetensors.*damaged or altered"):
        sdfast.load(copied)


def test_a_truncated_graph_and_a_missing_file_are_noticed(copied: Path) -> None:
    graph = copied / "unet.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"unet\.onnx.*damaged"):
        bundle.load(copied)
    graph.unlink()
    with pytest.raises(BundleError, match=r"lacks unet\.onnx"):
        bundle.load(copied)


def test_a_link_out_of_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (copied / "unet.onnx").rename(outside)
    (copied / "unet.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of its folder"):
        bundle.load(copied)


def test_zero_terminal_snr_reaches_the_noise_levels(copied: Path) -> None:
    change(copied, lambda raw: raw["betas"].update(zero_terminal_snr=True))
    found = bundle.noise_schedule(bundle.load(copied).manifest.betas)
    assert found.sigma_max == pytest.approx(4518.76, abs=0.005)


def controlled(raw: dict[str, Any]) -> None:
    """Made a bundle of task "control" with the demo's U-Net as its network."""
    raw.update(task="control", tokenizers={}, betas=None, context=None, defaults=None)
    raw["networks"] = {"controlnet": raw["networks"]["unet"]}


def test_a_bundle_for_control_has_one_network_and_draws_nothing(copied: Path) -> None:
    change(copied, controlled)
    found = bundle.load(copied)
    assert set(found.manifest.networks) == {"controlnet"}
    with pytest.raises(BundleError, match="is for task control and draws no pictures by itself"):
        _ = found.defaults
    with pytest.raises(InvalidRequest, match="is for task control; pictures are drawn by"):
        sdfast.load(copied)("a red star")


def test_a_task_that_is_not_drawn_is_refused_in_one_sentence(copied: Path) -> None:
    def editing(raw: dict[str, Any]) -> None:
        raw["task"] = "edit"
        for name in ("unet", "unet_shallow", "unet_adapters"):
            raw["networks"][name]["inputs"]["latent"]["shape"][1] = 8

    change(copied, editing)
    with pytest.raises(InvalidRequest, match="is for task edit; pictures are drawn by"):
        sdfast.load(copied)("a red star")


def test_a_network_for_inpainting_reads_what_it_is_shown(copied: Path) -> None:
    change(copied, lambda raw: raw.update(task="inpaint"))
    with pytest.raises(BundleError, match="latent must have 9 channels for task inpaint"):
        bundle.load(copied)


def test_a_hard_link_is_a_file_like_any_other(copied: Path, tmp_path: Path) -> None:
    (copied / "unet.safetensors").rename(tmp_path / "checkpoint.safetensors")
    (copied / "unet.safetensors").hardlink_to(tmp_path / "checkpoint.safetensors")
    assert bundle.load(copied).manifest == store.load("demo").manifest
