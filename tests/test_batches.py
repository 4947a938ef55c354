"""Batches: which pictures there are, in which order they are drawn, and what a second run finds."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import sdfast
from sdfast import batches, images, store, sweeps
from sdfast.errors import InvalidRequest, OutputError
from sdfast.picture_folder import SIDECAR, Folder
from sdfast.prompt_files import Row
from sdfast.provenance import Origin
from sdfast.sweeps import Axis, Picture

STAR = Row("line 1", {"prompt": "a red star"})
RING = Row("line 2", {"prompt": "a green ring", "guidance": 1})
QUICK = {"steps": 1, "width": 64, "height": 64}


def expanded(
    demo: sdfast.Pipeline, *rows: Row, axes: tuple[Axis, ...] = (), **shared: object
) -> list[Picture]:
    found, failures = batches.expand(rows, QUICK | shared, axes, demo, Origin.of(demo))
    assert failures == []
    return found


def test_a_sweep_is_every_row_with_every_value_of_every_axis(demo: sdfast.Pipeline) -> None:
    axes = (Axis("sampler", ("euler", "ddim")), Axis("steps", (1, 2, 3)))
    found = expanded(demo, STAR, RING, axes=axes, count=2)
    assert len({picture.name for picture in found}) == len(found) == 2 * 2 * 3 * 2
    for picture in found:
        sampler, steps = picture.place
        request = picture.request
        assert request.sampler == axes[0].values[sampler]
        assert request.steps == axes[1].values[steps]
        assert (request.seed, request.count) == (picture.image, 1)
        assert request.guidance == (1 if picture.row == 1 else demo.bundle.defaults.guidance)


def test_own_parameters_and_words_of_prompts_are_swept(demo: sdfast.Pipeline) -> None:
    axes = (
        Axis("eta", (0.0, 0.5), "sampler_parameters"),
        Axis(sweeps.REPLACED, ("red", "light blue")),
    )
    found = expanded(demo, STAR, axes=axes, sampler="ddim")
    assert [(p.request.prompt, p.request.sampler_parameters.get("eta", 0)) for p in found] == [
        ("a red star", 0),
        ("a light blue star", 0),
        ("a red star", 0.5),
        ("a light blue star", 0.5),
    ]


def test_a_name_tells_everything_apart_that_shapes_a_picture_and_nothing_else(
    demo: sdfast.Pipeline,
) -> None:
    origin = Origin.of(demo)

    def name(origin: Origin = origin, **values: object) -> str:
        row = Row("", {"prompt": "a red star", **QUICK, **values})
        (picture,), _ = batches.expand([row], {}, (), demo, origin)
        return picture.name

    assert name() == name(seed=0) == name(negative_prompt="", sampler="DPM++ 2M")
    assert name() == name(replace(origin, backend="other", version="9"))
    different = [
        name(),
        name(seed=1),
        name(prompt="a red  star"),
        name(negative_prompt="blue"),
        name(steps=2),
        name(rng="torch"),
        name(guidance=3),
        name(sampler="ddim"),
        name(sampler="ddim", sampler_parameters={"eta": 0.5}),
        name(cache=2),
        name(replace(origin, bundle_digest="0")),
        name(replace(origin, precision="bf16")),
    ]
    assert len(set(different)) == len(different)


def test_what_cannot_be_drawn_is_told_with_its_row_and_place(demo: sdfast.Pipeline) -> None:
    rows = (STAR, Row("line 2", {"prompt": ""}), Row("line 3", {}))
    axes = (Axis("steps", (1, 5000)),)
    found, failures = batches.expand(rows, {}, axes, demo, Origin.of(demo))
    assert [picture.place for picture in found] == [(0,)]
    assert [failure.place for failure in failures] == [
        "line 1, steps 5000",
        *(f"line {row}, steps {steps}" for row in (2, 3) for steps in (1, 5000)),
    ]
    assert "from 1 to 1000" in failures[0].reason
    with pytest.raises(InvalidRequest, match=r"line 2, steps 1: the prompt is empty"):
        batches.expand(rows[1:], {}, axes, demo, Origin.of(demo))


def test_a_row_may_not_give_what_the_sweep_varies(demo: sdfast.Pipeline) -> None:
    own = Row("line 3", {"prompt": "a", "sampler_parameters": {"eta": 0.5}})
    for row, axis in (
        (RING, Axis("guidance", (1, 2))),
        (own, Axis("eta", (0.0, 1.0), "sampler_parameters")),
    ):
        with pytest.raises(InvalidRequest, match=f"{row.place} gives {axis.name}, which the sweep"):
            batches.expand([row], {}, (axis,), demo, Origin.of(demo))


def test_runs_hold_every_picture_once_and_those_of_one_shape_and_plan_together(
    demo: sdfast.Pipeline,
) -> None:
    axes = (Axis("width", (64, 96)), Axis("sampler", ("euler", "ddim")), Axis("seed", (3, 4, 9)))
    pictures = expanded(demo, STAR, RING, STAR, axes=axes)
    found = batches.runs(pictures)
    flat = [picture for run in found for picture in run]
    assert sorted(p.name for p in flat) == sorted({p.name for p in pictures})
    shapes = [(p.request.width, p.request.guidance == 1) for p in flat]
    plans = [(*shape, p.request.sampler) for shape, p in zip(shapes, flat, strict=True)]
    for keys in (shapes, plans):  # each comes in one piece
        assert len(list(itertools.groupby(keys))) == len(set(keys))
    assert [[p.request.seed for p in run] for run in found] == [[3, 4], [9]] * 8
    assert flat[0].name == pictures[0].name


def test_long_runs_are_cut(demo: sdfast.Pipeline) -> None:
    (row,) = {len(run) for run in batches.runs(expanded(demo, STAR, count=16))}
    assert row == batches.TOGETHER == 8


def test_pictures_are_those_of_requests_alone_and_are_found_again(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    pictures = expanded(demo, STAR, RING, count=2)
    folder = Folder(tmp_path, "png", Origin.of(demo))
    drawn = [
        r for records in batches.draw(batches.runs(pictures), demo, folder.add) for r in records
    ]
    lines = [json.loads(line) for line in (tmp_path / SIDECAR).read_text().splitlines()]
    assert [line["file"] for line in lines] == [record.file for record in drawn]
    for picture, line in zip(
        batches.runs(pictures)[0] + batches.runs(pictures)[1], lines, strict=True
    ):
        request, bundle = images.read_request(folder.file(picture.name))
        assert request == picture.request
        assert bundle == line["origin"]["bundle"] == "demo"
        assert sdfast.Request.from_dict(line["request"]) == request
        with Image.open(folder.file(picture.name)) as image:
            assert image.tobytes() == demo(request).images[0].tobytes()
        assert set(line["seconds"]) == {"text_encoder", "unet", "vae_decoder", "total"}
        assert line["together"] == 2
    again = Folder(tmp_path, "png", Origin.of(demo))
    assert all(again.has(p.name, p.request) for p in pictures)
    assert len((tmp_path / SIDECAR).read_text().splitlines()) == len(pictures)


def test_a_picture_cut_off_is_none_and_one_without_a_line_gets_it(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    pictures = expanded(demo, STAR, count=2)
    origin = Origin.of(demo)
    list(batches.draw(batches.runs(pictures), demo, Folder(tmp_path, "png", origin).add))
    folder = Folder(tmp_path, "png", origin)
    cut = folder.file(pictures[0].name)
    cut.write_bytes(cut.read_bytes()[:-200])
    sidecar = tmp_path / SIDECAR
    sidecar.write_bytes(sidecar.read_bytes()[:-20])  # as if killed while the last line was written
    folder = Folder(tmp_path, "png", origin)
    assert [folder.has(p.name, p.request) for p in pictures] == [False, True]
    first, broken, last = sidecar.read_text().splitlines()
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken)
    assert json.loads(first)["file"] == cut.name
    noted = json.loads(last)
    assert noted["file"] == folder.file(pictures[1].name).name
    assert noted["seconds"] is None


def test_what_fails_while_it_is_drawn_takes_nothing_with_it(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    long = Row("line 2", {"prompt": "red " * 3000})
    pictures = expanded(demo, long, STAR, count=2)
    outcomes = list(
        batches.draw(batches.runs(pictures), demo, Folder(tmp_path, "png", Origin.of(demo)).add)
    )
    failures = [found for found in outcomes if isinstance(found, batches.Failure)]
    assert ["seed 0" in failures[0].place, "seed 1" in failures[1].place] == [True, True]
    assert all("chunks" in failure.reason for failure in failures)
    assert [r.seed for found in outcomes if isinstance(found, list) for r in found] == [0, 1]


def test_a_folder_that_cannot_be_written_ends_a_batch(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --out"):
        Folder(tmp_path / "file" / "below", "png", Origin.of(demo))
    folder = Folder(tmp_path / "gone", "png", Origin.of(demo))
    folder.path.rmdir()
    with pytest.raises(OutputError, match="cannot be written"):
        list(batches.draw(batches.runs(expanded(demo, STAR)), demo, folder.add))


def test_grids_have_an_axis_a_side_and_the_rest_on_grids_of_their_own(
    demo: sdfast.Pipeline,
) -> None:
    axes = (
        Axis("steps", (1, 2, 3)),
        Axis("guidance", (2.0, 4.5)),
        Axis("rng", ("philox", "torch")),
    )
    pictures = expanded(demo, STAR, axes=axes)
    first, second = sweeps.grids(pictures, [STAR], axes, lambda picture: Path(picture.name))
    assert first.titles == ("a red star", "rng philox")
    assert second.titles == ("a red star", "rng torch")
    assert first.columns == ("steps 1", "steps 2", "steps 3")
    assert first.rows == ("guidance 2", "guidance 4.5")
    by_name = {picture.name: picture for picture in pictures}
    for grid, rng in ((first, "philox"), (second, "torch")):
        assert len(grid.files) == 6
        for (column, row), file in grid.files.items():
            request = by_name[file.name].request
            found = (request.steps, request.guidance, request.rng)
            assert found == (axes[0].values[column], axes[1].values[row], rng)


def test_rows_and_images_take_the_sides_that_axes_leave(demo: sdfast.Pipeline) -> None:
    axes = (Axis("steps", (1, 2)),)
    pictures = expanded(demo, STAR, RING, axes=axes, count=2)
    missing = pictures[-1].name
    grids = list(
        sweeps.grids(
            pictures,
            [STAR, RING],
            axes,
            lambda picture: None if picture.name == missing else Path(picture.name),
        )
    )
    assert [grid.titles for grid in grids] == [("seed 0",), ("seed 1",)]
    assert [grid.rows for grid in grids] == [("a red star", "a green ring, guidance 1")] * 2
    assert [sorted(grid.files) for grid in grids] == [
        [(0, 0), (0, 1), (1, 0), (1, 1)],
        [(0, 0), (0, 1), (1, 0)],
    ]
    assert list(sweeps.grids(pictures, [STAR], (), lambda _: None)) == []


def test_a_picture_that_is_drawn_from_another_is_named_by_its_pixels(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    file = tmp_path / "given.png"

    def name(colour: str) -> str:
        Image.new("RGB", (128, 128), colour).save(file)
        (picture,) = expanded(demo, Row("line 1", {"prompt": "a star", "image": str(file)}))
        return picture.name

    assert name("red") == name("red") != name("blue")


def test_a_picture_is_named_by_the_content_of_its_loras_and_controlnets(
    demo: sdfast.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pine.safetensors"
    monkeypatch.setattr(demo._variants, "_folder", tmp_path)
    control = tmp_path / "control"
    shutil.copytree(store.find("demo-control"), control)
    given = {"control": {"bundle": str(control), "image": Image.new("RGB", (64, 64))}}

    def names() -> tuple[str, ...]:
        rows = (
            Row("line 1", {"prompt": "a <lora:pine> star"}),
            Row("line 2", {"prompt": "a star", "hires": {"prompt": "a <lora:pine> star"}}),
            Row("line 3", {"prompt": "a star", **given}),
        )
        return tuple(picture.name for picture in expanded(demo, *rows))

    file.write_bytes(b"one")
    before = names()
    assert names() == before
    file.write_bytes(b"two")
    manifest = json.loads((control / "bundle.json").read_text())
    (control / "bundle.json").write_text(json.dumps({**manifest, "name": "another"}))
    assert [new != old for new, old in zip(names(), before, strict=True)] == [True] * 3


def test_each_image_of_a_request_has_the_map_of_its_own(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    maps = [str(tmp_path / f"{colour}.png") for colour in ("red", "black")]
    for file in maps:
        Image.new("RGB", (64, 64), Path(file).stem).save(file)
    given = {"bundle": "demo-control", "image": maps}
    row = Row("line 1", {"prompt": "a red star", "control": given})
    pictures = expanded(demo, row, count=2)
    folder = Folder(tmp_path / "out", "png", Origin.of(demo))
    drawn = list(batches.draw(batches.runs(pictures), demo, folder.add))
    assert all(isinstance(outcome, list) for outcome in drawn)
    for picture, file in zip(pictures, maps, strict=True):
        request, _ = images.read_request(folder.file(picture.name))
        assert request.control == ({"bundle": "demo-control", "image": file},)
        own = {**given, "image": file}
        seed = picture.image
        (alone,) = expanded(demo, Row("", {**row.values, "control": own}), seed=seed)
        assert alone.name == picture.name
