"""Memory: what pictures take is foretold from below, and what cannot fit is refused before it."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sdfast import Request
from sdfast.bundle import Sizes
from sdfast.errors import EngineError
from sdfast.request import Resolved, resolve
from sdfast.service import Limits, Service, memory
from sdfast.service.memory import Memory, Needs
from sdfast.service.refusals import OutOfMemory
from sdfast.service.worker import _of_memory
from sdfast.store import load

MIB = 1 << 20
SIZES = Sizes(128, 128, 64, 4096, 8, 4, 8)
DEMO = load("demo")


def asked(width: int, height: int, count: int = 1) -> Resolved:
    usual = resolve(Request("a red star"), DEMO)
    return replace(usual, width=width, height=height, count=count)


def measured(limit: int, together: int = 1) -> Memory:
    """Of a model whose pictures take 20 MiB, and 1 KiB a pixel."""
    known = Memory(limit)
    known.opened(10_000 * MIB, 0, together)
    for side in (64, 128):
        known.saw("demo", side * side, 1, 20 * MIB + 1024 * side * side)
    return known


@pytest.mark.parametrize("pixels", [300, 512, 1000, 4000])
def test_what_is_foretold_lies_below_what_curves_upward(pixels: int) -> None:
    def takes(pixels: int) -> int:
        return 1_000_000 + 700 * pixels + 3 * pixels**2

    needs = Needs()
    for drawn in (64, 128, 256):
        needs.saw(drawn, takes(drawn))
    assert takes(256) < needs.of(pixels) <= takes(pixels)


def test_what_was_drawn_fits_and_what_nobody_knows_is_not_refused() -> None:
    needs = Needs()
    assert needs.of(10**9) == 0
    needs.saw(64 * 64, 10**9)
    assert needs.of(10**9) == 0
    needs.saw(512 * 512, 10**10)
    assert needs.of(512 * 512) == 0
    assert needs.of(1024 * 1024) > 10**10
    assert needs.of(4096 * 4096) == needs.of(1024 * 1024)  # in tiles


def test_what_cannot_fit_is_refused_with_what_does() -> None:
    known = measured(100 * MIB)
    known.check("demo", asked(256, 256), SIZES)
    known.check("another", asked(4096, 4096), SIZES)
    with pytest.raises(OutOfMemory) as told:
        known.check("demo", asked(512, 384), SIZES)
    assert str(told.value) == (
        "512×384 would take at least 214 MiB of memory, and there are 100: 328×240 or 280×280 fit"
    )
    for width, height in ((328, 240), (280, 280)):
        known.check("demo", asked(width, height), SIZES)
    with pytest.raises(OutOfMemory):
        known.check("demo", asked(288, 288), SIZES)


def test_images_that_share_a_call_count_together() -> None:
    known = measured(100 * MIB, together=4)
    known.check("demo", asked(256, 256), SIZES)
    with pytest.raises(OutOfMemory, match=r"8 pictures of 256×256 .*: 256×256 or 8 pictures of 1"):
        known.check("demo", asked(256, 256, 8), SIZES)


def test_a_second_pass_counts() -> None:
    known, small = measured(100 * MIB), asked(128, 128)
    with pytest.raises(OutOfMemory, match="512×512"):
        known.check("demo", replace(small, second=asked(512, 512)), SIZES)


def test_what_a_larger_one_took_is_not_a_smaller_ones() -> None:
    known = measured(0)
    known.begun(512 * 512, 1)
    known.saw("demo", 256 * 256, 1, 9_000 * MIB)  # while the larger one is drawn
    known.check("demo", asked(1024, 1024), SIZES)
    known.saw("demo", 512 * 512, 1, 9_000 * MIB)
    with pytest.raises(OutOfMemory):
        known.check("demo", asked(1024, 1024), SIZES)


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


INFO = {"meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", "self/cgroup": "0::/a/b\n"}


@pytest.mark.parametrize(
    ("groups", "line", "kib"),
    [
        ({}, "0::/\n", 8000),
        ({"memory.max": "max\n", "memory.current": "5\n"}, "0::/\n", 8000),
        ({"a/b/memory.max": "4096000\n", "a/b/memory.current": "1024000\n"}, "0::/a/b\n", 3000),
        ({"a/memory.max": "4096000\n", "a/memory.current": "1024000\n"}, "0::/a/b\n", 3000),
        ({"memory.max": "4096000\n", "memory.current": "1024000\n"}, "0::/of/outside\n", 3000),
        (
            {
                "memory.max": "4096000",
                "memory.current": "1024000",
                "memory.stat": "anon 5\ninactive_file 512000\n",
            },
            "0::/\n",
            3500,
        ),
        (
            {
                "memory/a/memory.limit_in_bytes": "2048000\n",
                "memory/a/memory.usage_in_bytes": "1024000\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": "1024000\n",
            },
            "4:cpu,memory:/a\n0::/\n",
            1000,
        ),
        ({"memory.max": "1000\n", "memory.current": "2000\n"}, "0::/\n", 0),
    ],
)
def test_there_is_as_much_as_the_tightest_bound_leaves(
    tmp_path: Path, groups: dict[str, str], line: str, kib: int
) -> None:
    proc = written(tmp_path / "proc", {**INFO, "self/cgroup": line})
    assert memory.room(proc, written(tmp_path / "groups", groups)) == kib * 1024


def test_where_nothing_is_known_nothing_is_said(tmp_path: Path) -> None:
    assert memory.room(tmp_path, tmp_path) is None
    known = Memory(0)
    known.opened(None, 0, 1)
    for side in (64, 128):
        known.saw("demo", side * side, 1, side * MIB)
    known.check("demo", asked(4096, 4096), SIZES)


def test_this_process_is_measured() -> None:
    code = (
        "from sdfast.service.memory import Footprint, room\n"
        "import resource\n"
        "mine = Footprint(lambda: None)\n"
        "taken = bytearray(64 << 20); del taken\n"
        "assert 60 << 20 <= mine.grown() < 80 << 20, mine.grown()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "assert 1 << 30 < room() < 2 << 30\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert memory.resident() is not None
    assert (memory.room() or 0) > MIB


def of(cause: str) -> EngineError:
    error = EngineError("unet.onnx failed: a smaller picture needs less memory")
    error.__cause__ = RuntimeError(cause)
    return error


def test_want_of_memory_is_told_from_what_is_broken() -> None:
    for words in (
        "Failed to allocate memory for requested buffer of size 4294967296",
        "std::bad_alloc",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
    ):
        assert _of_memory(of(words))
    assert _of_memory(MemoryError())
    assert _of_memory(EngineError("CUDA failed (CUDA_ERROR_OUT_OF_MEMORY): see"))
    assert not _of_memory(of("CUDA_ERROR_ILLEGAL_ADDRESS"))
    assert not _of_memory(ValueError("out of memory"))


LARGE = Request("a red star", seed=1, steps=2, width=512, height=512)
SMALL = Request("a red star", seed=1, steps=2, width=64, height=64)


def serving(limits: Limits) -> Service:
    return Service(["demo"], backend="onnxruntime", threads=2, limits=limits)


def test_a_shape_beyond_the_limit_is_refused_before_it_is_drawn() -> None:
    async def test() -> None:
        async with asyncio.timeout(60), serving(Limits(memory=260 * MIB)) as service:
            with pytest.raises(OutOfMemory, match=r"^512×512 would take .* fit$") as told:
                await service.submit(LARGE)
            assert not service.jobs("")
            fits = int(str(told.value).split("×")[-1].split()[0])
            job = await service.submit(replace(SMALL, width=fits, height=fits))
            assert (await job.result()).images
            assert 'rejected_total{reason="out_of_memory"} 1.0' in service.metrics.text().decode()

    asyncio.run(test())


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux sets limits of others")
def test_memory_that_ends_while_it_draws_fails_that_request_alone() -> None:
    """A real limit on the worker's address space, of which nobody told it."""

    async def test() -> None:
        async with asyncio.timeout(60), serving(Limits(canary=0)) as service:
            pid = service._keeper.pid
            assert pid is not None
            before = await (await service.submit(SMALL)).result()
            status = Path(f"/proc/{pid}/status").read_text()
            size = int(status.split("VmSize:")[1].split()[0]) * 1024
            most = size + 100 * MIB
            resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
            for _ in range(2):
                large = await service.submit(LARGE)
                beside = await service.submit(SMALL)
                with pytest.raises(OutOfMemory, match="1 picture"):
                    await large.result()
                after = await beside.result()
                assert after.images[0].tobytes() == before.images[0].tobytes()
            assert service._keeper.pid == pid

    asyncio.run(test())
