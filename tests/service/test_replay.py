"""Pictures of a service say how they were drawn, and are drawn again from that, bit for bit."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from sdfast import Request, cpu, images
from sdfast.errors import CannotReplay
from sdfast.replaying import replay
from sdfast.service import Limits, Service
from sdfast.service.http import pictures

STAR = "a large yellow star on a black background"
START = Image.effect_noise((96, 64), 60).convert("RGB")
DRAWN: list[dict[str, Any]] = [
    {"prompt": STAR, "seed": 1, "steps": 4, "width": 64, "height": 64, "count": 3},
    {"prompt": STAR, "seed": 2, "steps": 5, "sampler": "euler_ancestral", "guidance": 6.0},
    {"prompt": STAR, "seed": 3, "steps": 3, "width": 64, "height": 64, "hires": {"scale": 1.5}},
    {"prompt": STAR, "seed": 4, "steps": 4, "image": START, "strength": 0.7},
]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def files(backend: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of pictures that were drawn beside each other."""
    folder = tmp_path_factory.mktemp("drawn")

    async def draw() -> list[Path]:
        found = list[Path]()
        async with Service(
            ["demo"], backend=backend, threads=2, limits=Limits(canary=0)
        ) as service:
            jobs = [await service.submit(Request(**one)) for one in DRAWN]
            for k, job in enumerate(jobs):
                form = "jpeg" if k == 1 else "png"
                for place, data in enumerate(await pictures.encoded(await job.result(), form)):
                    found.append(folder / f"{k}-{place}.{form}")
                    found[-1].write_bytes(data)
        return found

    return asyncio.run(draw())


def test_what_a_service_drew_is_drawn_again_bit_for_bit(files: list[Path], tmp_path: Path) -> None:
    START.save(tmp_path / "start.png")
    assert [file.name[0] for file in files] == ["0", "0", "0", "1", "2", "3"]
    for file in files:
        image = tmp_path / "start.png" if file.name.startswith("3") else None
        outcome = replay(file, image=image)
        assert outcome.same, file
        assert outcome.changes is not None
        assert {change.name for change in outcome.changes} <= {"together"}


def test_the_file_names_the_bundle_and_not_the_machine(files: list[Path], backend: str) -> None:
    for file in files:
        made = images.read(file).made
        assert made is not None
        assert made.origin.backend == backend
        assert made.origin.bundle_digest
        assert (made.origin.machine, made.origin.features) == ("", ())
        assert cpu.model().encode() not in file.read_bytes()
    assert [images.read(file).made.place for file in files[:3]] == [0, 1, 2]  # type: ignore[union-attr]


def test_another_picture_than_it_was_drawn_from_is_refused(
    files: list[Path], tmp_path: Path
) -> None:
    Image.new("RGB", START.size, "red").save(tmp_path / "red.png")
    with pytest.raises(CannotReplay, match="another image"):
        replay(files[-1], image=tmp_path / "red.png")
    with pytest.raises(CannotReplay, match="--image"):
        replay(files[-1])


def test_pictures_over_http_are_replayed(client: httpx.Client, tmp_path: Path) -> None:
    body = {"prompt": STAR, "seed": 5, "steps": 3, "size": "64x64"}
    answer = client.post("/v1/images/generations", json=body)
    (tmp_path / "star.png").write_bytes(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    assert replay(tmp_path / "star.png").same
