"""Where bundles appear, and what else is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdfast.errors import OutputError
from sdfast.export import destination


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    place = tmp_path / "checkpoint"
    place.mkdir()
    (place / "model_index.json").write_text("{}")
    return place


def bundle(place: Path, content: str) -> Path:
    """A folder that is taken for a bundle."""
    place.mkdir()
    (place / "bundle.json").write_text(content)
    return place


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "made"
    with destination.new_folder(place) as folder:
        (folder / "file").write_text("whole")
        assert not place.exists()
    assert (place / "file").read_text() == "whole"
    assert place.stat().st_mode & 0o777 == 0o755
    assert names(place.parent) == {"made"}


def fail(place: Path, error: BaseException) -> None:
    with destination.new_folder(place) as folder:
        (folder / "bundle.json").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail(tmp_path / "made", error)
    assert names(tmp_path) == set()


def test_a_bundle_is_replaced_at_the_end_and_not_before(tmp_path: Path) -> None:
    place = bundle(tmp_path / "made", "old")
    with pytest.raises(ValueError, match="no"):
        fail(place, ValueError("no"))
    assert (place / "bundle.json").read_text() == "old"
    with destination.new_folder(place) as folder:
        (folder / "bundle.json").write_text("new")
        assert (place / "bundle.json").read_text() == "old"
    assert (place / "bundle.json").read_text() == "new"
    assert names(tmp_path) == {"made"}


def test_what_is_there_is_kept(tmp_path: Path, checkpoint: Path) -> None:
    place = bundle(tmp_path / "made", "old")
    with pytest.raises(OutputError, match="made exists: choose another place, or pass --overwrite"):
        destination.check(place, checkpoint, overwrite=False)
    destination.check(place, checkpoint, overwrite=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("keep me")
    (tmp_path / "link").symlink_to(place)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for other in (mine, mine / "letter.txt", tmp_path / "link", tmp_path / "dangling"):
        with pytest.raises(OutputError, match="exists"):
            destination.check(other, checkpoint, overwrite=False)
        with pytest.raises(OutputError, match="is no bundle: it is not overwritten"):
            destination.check(other, checkpoint, overwrite=True)
    assert (mine / "letter.txt").read_text() == "keep me"
    assert (place / "bundle.json").read_text() == "old"


@pytest.mark.parametrize("inside", [".", "made", "unet/made", "../checkpoint/made"])
def test_nothing_is_put_into_the_checkpoint(checkpoint: Path, inside: str) -> None:
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"is in the checkpoint .*: choose a place outside"):
            destination.check(checkpoint / inside, checkpoint, overwrite)


def test_a_bundle_with_the_checkpoint_in_it_is_not_replaced(
    tmp_path: Path, checkpoint: Path
) -> None:
    place = bundle(tmp_path / "made", "old")
    kept = checkpoint.rename(place / "checkpoint")
    with pytest.raises(OutputError, match=r"has the checkpoint .* in it, which --overwrite would"):
        destination.check(place, kept, overwrite=True)


def test_a_hub_id_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    destination.check(Path("owner/name"), "owner/name", overwrite=False)


def test_what_a_killed_export_left_is_removed_and_nothing_else(
    tmp_path: Path, checkpoint: Path
) -> None:
    left = tmp_path / ".sdfast-export-made-0a_bcdef"
    left.mkdir()
    (left / "unet.onnx").write_text("half")
    others = (".sdfast-export-made-2-0a_bcdef", ".sdfast-export-other-0a_bcdef", "made-0a_bcdef")
    for name in others:
        (tmp_path / name).mkdir()
    destination.check(tmp_path / "made", checkpoint, overwrite=False)
    assert names(tmp_path) == {"checkpoint", *others}


def test_a_bundle_that_a_killed_export_was_replacing_comes_back(
    tmp_path: Path, checkpoint: Path
) -> None:
    bundle(tmp_path / ".sdfast-export-made-0a_bcdef-old", "old")
    bundle(tmp_path / ".sdfast-export-made-0a_bcdef", "new")
    with pytest.raises(OutputError, match="made exists"):
        destination.check(tmp_path / "made", checkpoint, overwrite=False)
    assert (tmp_path / "made" / "bundle.json").read_text() == "old"
    bundle(tmp_path / ".sdfast-export-made-0a_bcdef-old", "older")
    destination.check(tmp_path / "made", checkpoint, overwrite=True)
    assert (tmp_path / "made" / "bundle.json").read_text() == "old"
    assert names(tmp_path) == {"checkpoint", "made"}


@pytest.mark.parametrize("place", ["/proc/made", "checkpoint/model_index.json/made"])
def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, checkpoint: Path, place: str
) -> None:
    with (
        pytest.raises(OutputError, match=r"made cannot be written \(.*\): choose another place"),
        destination.new_folder(tmp_path / place),
    ):
        pytest.fail("there is a folder")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"made cannot be written \(No space left on device"),
        destination.new_folder(tmp_path / "made"),
        Path("/dev/full").open("wb") as full,
    ):
        full.write(bytes(10_000_000))
    assert names(tmp_path) == set()
