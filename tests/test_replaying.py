"""Pictures drawn again: the same to the bit, or how far apart and why, or why not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from lora_files import write
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdfast
from sdfast import images, provenance, replaying
from sdfast.errors import BundleError, CannotReplay, InvalidRequest, LoraError
from sdfast.provenance import Origin, Provenance
from sdfast.replaying import Change, Difference, Replayed, replay
from sdfast.request import Request

QUICK = {"steps": 1, "width": 64, "height": 64, "seed": 3}
CHECKPOINT = Path(__file__).parent.parent / "export" / "demo" / "checkpoint"
MANY = {"count": 3, "sampler": "euler_ancestral", "steps": 2}


def drawn(
    pipe: sdfast.Pipeline,
    file: Path,
    which: int = 0,
    origin: Origin | None = None,
    lora_dir: Path | None = None,
    **parameters: object,
) -> Path:
    """A picture of a request, written as the command line does."""
    request = Request.from_dict({"prompt": "a red star", **QUICK, **parameters})
    result = pipe(request)
    made = Provenance(
        origin or Origin.of(pipe),
        provenance.inputs(request, provenance.lora_folders(pipe.bundle, lora_dir)),
        len(result.images),
        which,
    )
    single = replace(result.request, seed=result.seeds[which], count=1)
    form = file.suffix.lstrip(".")
    data = images.encode(result.images[which], form, single, pipe.bundle.name, "0.1.0", made)
    file.write_bytes(data)
    return file


def changed(file: Path, **other: object) -> Path:
    """The file with other values in its JSON, or without those that are None."""
    with Image.open(file) as image:
        said = {**json.loads(image.info["sdfast"]), **other}
        info = PngInfo()
        info.add_itxt("sdfast", json.dumps({k: v for k, v in said.items() if v is not None}))
        image.save(file, pnginfo=info)
    return file


def test_a_picture_that_is_drawn_again_is_the_same(demo: sdfast.Pipeline, tmp_path: Path) -> None:
    found = replay(drawn(demo, tmp_path / "a.png"))
    assert found == Replayed(
        same=True,
        lossy=None,
        altered=False,
        difference=Difference(0, 64 * 64, 0, 0.0),
        changes=(),
        now=Origin.of(demo),
        together=1,
    )


def test_one_of_several_is_the_same_when_it_is_drawn_alone(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    found = replay(drawn(demo, tmp_path / "a.png", 2, **MANY))
    assert found.same
    assert found.together == 1
    assert found.changes == (Change("together", "3", "1"),)


def test_one_that_is_another_alone_is_drawn_among_those_that_it_was_drawn_with(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    pipe = sdfast.load("demo", backend="openvino")
    seed = 2**64 - 2  # the third one's is 0
    together = {"count": 4, "steps": 6, "seed": seed, "width": 128, "height": 128}
    files = [drawn(pipe, tmp_path / f"{which}.png", which, **together) for which in range(4)]
    found = [replay(file) for file in files]
    assert all(one.same for one in found)
    assert {one.together for one in found} <= {1, 4}
    assert all(one.changes == () for one in found if one.together == 4)
    made = images.read(files[0]).made
    assert made is not None
    silent = replace(made, together=1, place=0)
    alone = replay(changed(files[0], made=silent.to_dict()))
    assert alone.same is (found[0].together == 1)


@pytest.mark.parametrize("form", ["jpg", "webp"])
def test_a_lossy_file_is_compared_by_the_digest_of_what_was_drawn(
    form: str, demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    file = drawn(demo, tmp_path / f"a.{form}")
    found = replay(file)
    assert (found.same, found.lossy) == (True, images.FORMATS[form])
    assert found.altered is found.difference is None
    other = replace(images.read(file), pixels="sha256:0")
    with Image.open(file) as image:
        assert not replaying.compared(file, other, image.convert("RGB"), found.now).same


def test_a_changed_pixel_is_found_and_told(demo: sdfast.Pipeline, tmp_path: Path) -> None:
    file = drawn(demo, tmp_path / "a.png")
    with Image.open(file) as image:
        said = image.info["sdfast"]
        red, green, blue = image.getpixel((5, 7))
        image.putpixel((5, 7), (red, green ^ 4, blue))
        info = PngInfo()
        info.add_itxt("sdfast", said)
        image.save(file, pnginfo=info)
    found = replay(file)
    assert (found.same, found.altered) == (False, True)
    assert found.difference == Difference(1, 64 * 64, 4, 4 / (3 * 64 * 64))
    assert found.changes == ()


def test_a_picture_of_another_size_is_not_the_same(demo: sdfast.Pipeline, tmp_path: Path) -> None:
    file = drawn(demo, tmp_path / "a.png")
    with Image.open(file) as image:
        info = PngInfo()
        info.add_itxt("sdfast", image.info["sdfast"])
        image.resize((32, 32)).save(file, pnginfo=info)
    found = replay(file)
    assert (found.same, found.altered, found.difference) == (False, True, None)


def test_what_is_not_as_it_was_is_told_beside_a_difference(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    origin = replace(
        Origin.of(demo), backend_version="0.9", machine="another CPU", features=("avx2", "fma")
    )
    request = demo(Request("a red star", **QUICK)).request
    file = drawn(demo, tmp_path / "a.png", origin=origin)
    found = replay(changed(file, request=replace(request, seed=4).to_dict()))
    now = Origin.of(demo)
    assert not found.same
    assert found.difference is not None
    assert found.difference.pixels > 1000
    assert found.changes == (
        Change("backend version", "0.9", now.backend_version),
        Change("machine", "another CPU", now.machine),
        Change("features", "avx2 fma", " ".join(now.features)),
    )


def test_another_backend_is_told(demo: sdfast.Pipeline, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = replay(drawn(demo, tmp_path / "a.png"), backend="openvino")
    assert found.changes is not None
    assert Change("backend", "onnxruntime", "openvino") in found.changes


def test_a_picture_from_before_it_told_what_drew_it_is_compared(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    file = changed(drawn(demo, tmp_path / "a.png"), made=None, pixels=None)
    found = replay(file, backend="onnxruntime")
    assert (found.same, found.altered, found.changes) == (True, None, None)


def test_how_the_pipeline_was_opened_is_how_it_is_opened_again(tmp_path: Path) -> None:
    pipe = sdfast.load("demo", backend="onnxruntime", threads=1, tile=64)
    origin = Origin.of(pipe, 1, 64)
    file = drawn(pipe, tmp_path / "a.png", origin=origin, width=128, height=128)
    found = replay(file)
    assert found.same
    assert (found.now.threads, found.now.tile) == (1, 64)
    made = images.read(file).made
    assert made is not None
    whole = replace(made, origin=replace(made.origin, tile=None))
    assert not replay(changed(file, made=whole.to_dict())).same  # so the tile has to be told


def test_a_bundle_of_the_name_with_another_digest_is_refused(copied: Path, tmp_path: Path) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    (copied / "bundle.json").write_text(json.dumps({**manifest, "notes": ["another"]}))
    file = drawn(sdfast.load(copied, backend="onnxruntime"), tmp_path / "a.png")
    with pytest.raises(CannotReplay, match=r"another bundle demo \(sha256 .*--bundle"):
        replay(file)
    assert replay(file, bundle=copied).same
    shutil.rmtree(copied)
    with pytest.raises(BundleError, match="there is no bundle"):
        replay(file, bundle=copied)


def test_the_bundle_that_was_asked_for_may_be_another(
    demo: sdfast.Pipeline, copied: Path, tmp_path: Path
) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    (copied / "bundle.json").write_text(json.dumps({**manifest, "notes": ["another"]}))
    found = replay(drawn(demo, tmp_path / "a.png"), bundle=copied)
    assert found.same
    assert [change.name for change in found.changes or ()] == ["bundle digest"]


def test_pictures_are_found_by_path_or_given_and_have_to_be_those(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    source, mask = tmp_path / "source.png", tmp_path / "mask.png"
    Image.radial_gradient("L").convert("RGB").resize((64, 64)).save(source)
    Image.new("L", (64, 64), 255).save(mask)
    given = {"image": str(source), "mask": str(mask), "steps": 2, "strength": 0.9}
    file = drawn(demo, tmp_path / "a.png", **given)
    assert replay(file).same
    moved = source.rename(tmp_path / "moved.png")
    with pytest.raises(CannotReplay, match=r"image .*source.png, which cannot be read.*--image"):
        replay(file)
    assert replay(file, image=moved).same
    with Image.open(moved) as image:
        image.save(tmp_path / "as.tiff")
    assert replay(file, image=tmp_path / "as.tiff").same  # its pixels count, not the file
    with pytest.raises(CannotReplay, match="from another image than"):
        replay(file, image=mask)
    mask.write_bytes((tmp_path / "as.tiff").read_bytes())
    with pytest.raises(CannotReplay, match="from another mask than"):
        replay(file, image=moved)


def test_a_picture_in_memory_has_to_be_given(demo: sdfast.Pipeline, tmp_path: Path) -> None:
    source = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    file = drawn(demo, tmp_path / "a.png", image=source, steps=2)
    with pytest.raises(CannotReplay, match="--image"):
        replay(file)
    source.save(tmp_path / "source.png")
    assert replay(file, image=tmp_path / "source.png").same


def test_a_picture_that_it_was_not_drawn_from_is_refused(
    demo: sdfast.Pipeline, tmp_path: Path
) -> None:
    file = drawn(demo, tmp_path / "a.png")
    with pytest.raises(CannotReplay, match="drawn without image: leave out --image"):
        replay(file, image=file)


def test_the_loras_have_to_be_those(tmp_path: Path, demo: sdfast.Pipeline) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    write(folder / "ink.safetensors", CHECKPOINT, 1)
    pipe = sdfast.load("demo", backend="onnxruntime", lora_dir=folder)
    prompt = "a red star <lora:ink:1>"
    file = drawn(pipe, tmp_path / "a.png", lora_dir=folder, prompt=prompt)
    assert replay(file, lora_dir=folder).same
    with pytest.raises(LoraError, match="there is no LoRA 'ink'"):
        replay(file)
    write(folder / "ink.safetensors", CHECKPOINT, 2)
    with pytest.raises(CannotReplay, match="with another LoRA ink"):
        replay(file, lora_dir=folder)


def test_what_carries_nothing_cannot_be_replayed(tmp_path: Path, demo: sdfast.Pipeline) -> None:
    plain, lossy = tmp_path / "plain.png", tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(plain)
    with pytest.raises(InvalidRequest, match="carries no request of sdfast"):
        replay(plain)
    with Image.open(drawn(demo, tmp_path / "a.png")) as image:
        said = json.loads(image.info["sdfast"])
        exif = Image.Exif()
        exif[0x010E] = json.dumps({k: said[k] for k in ("request", "model", "version")})
        image.save(lossy, exif=exif)
    with pytest.raises(CannotReplay, match="is a JPEG, which does not keep pixels"):
        replay(lossy)


def test_a_controlnet_has_to_be_the_one_that_it_was(demo: sdfast.Pipeline, tmp_path: Path) -> None:
    shown = tmp_path / "map.png"
    classes = sdfast.store.load("demo-control").manifest.palette or {}
    Image.new("RGB", (64, 64), next(iter(classes.values()))).save(shown)
    control = [{"bundle": "demo-control", "image": str(shown)}]
    file = drawn(demo, tmp_path / "a.png", control=control)
    made = images.read(file).made
    assert made is not None
    assert set(made.inputs.pictures) == {"control 0"}
    assert replay(file).same
    other = replace(made, inputs=replace(made.inputs, bundles={"demo-control": "0" * 64}))
    with pytest.raises(CannotReplay, match="with another ControlNet demo-control"):
        replay(changed(file, made=other.to_dict()))
