"""What pictures need of memory, foretold from what others took, and what there is of it.

Activations grow with the pixels, the scores of attention with their square: what a picture takes
curves upward. So beyond two sizes that were drawn the line through them lies below the truth, and
what does not fit by the line does not fit. Up to the larger of the two everything does, since that
has. Nothing is known before two sizes were drawn, nor where pictures are computed in tiles: there
nothing is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..bundle import Sizes
from ..request import Resolved
from ..tiling import WHOLE
from .refusals import OutOfMemory

_HELD = 6  # bytes of a pixel that is drawn: as a picture, and in the message that brings it
_MIB = 1 << 20
_NO_LIMIT = 1 << 60  # bytes; what version 1 of control groups says where there is none


@dataclass
class Needs:
    """Bytes that a worker grows by to draw with a model, its networks among them: at least, by
    pixels of the images that share a call."""

    _seen: dict[int, int] = field(default_factory=dict)

    def saw(self, pixels: int, grown: int) -> None:
        """grown: by how much the worker was larger at most than before it drew anything."""
        self._seen[pixels] = max(grown, self._seen.get(pixels, 0))

    def of(self, pixels: int) -> int:
        """0 where nothing is known."""
        if len(self._seen) < 2 or pixels <= (largest := max(self._seen)):
            return 0
        smallest = min(self._seen)
        below, above = self._seen[smallest], self._seen[largest]
        slope = max(above - below, 0) / (largest - smallest)
        reach = min(pixels, max(WHOLE**2, largest))
        return round(above + slope * (reach - largest))


@dataclass
class Memory:
    """The memory of a worker.

    limit: bytes that it may have; 0 for what there is
    together: images whose rows share a call at most
    """

    limit: int
    together: int = 1
    _room: int | None = None
    _idle: int = 0
    _largest: int = 0  # pixels of what this worker began
    _needs: dict[str, Needs] = field(default_factory=dict)

    def opened(self, room: int | None, idle: int, together: int) -> None:
        """A worker is open. room: bytes that it may take yet, None where nobody knows; idle: that
        it has."""
        self._room, self._idle = room, idle
        self.together, self._largest = together, 0

    def begun(self, pixels: int, images: int) -> None:
        """What the worker takes from now on may be of such a picture."""
        self._largest = max(self._largest, self._shared(pixels, images))

    def called(self, pixels: int, rows: int) -> None:
        """So many rows of such a picture, two of which are an image, were computed at once."""
        self._largest = max(self._largest, pixels * rows // 2)

    def saw(self, model: str, pixels: int, images: int, grown: int | None) -> None:
        """Such a picture was drawn, by a worker that had grown by that much at most. It says
        nothing where that may be another's doing."""
        shared = self._shared(pixels, images)
        if grown is not None and shared >= self._largest:
            self._needs.setdefault(model, Needs()).saw(shared, grown)

    def check(self, model: str, asked: Resolved, sizes: Sizes) -> None:
        """Raises OutOfMemory for pictures that there is too little for."""
        room, needs = self._left(), self._needs.get(model)
        each: Resolved | None = asked
        while room is not None and needs is not None and each is not None:
            need = self._need(needs, each.width * each.height, each.count)
            if need > room:
                raise OutOfMemory(
                    f"{_named(each.width, each.height, each.count)} would take at least "
                    f"{math.ceil(need / _MIB)} MiB of memory, and there are {room // _MIB}: "
                    f"{self._fitting(needs, room, each, sizes)}"
                )
            each = each.second

    def _left(self) -> int | None:
        limited = max(self.limit - self._idle, 0) if self.limit else None
        return min((one for one in (self._room, limited) if one is not None), default=None)

    def _need(self, needs: Needs, pixels: int, images: int) -> int:
        network = needs.of(self._shared(pixels, images))
        return network and network + _HELD * pixels * images

    def _shared(self, pixels: int, images: int) -> int:
        return pixels * min(images, self.together)

    def _fitting(self, needs: Needs, room: int, asked: Resolved, sizes: Sizes) -> str:
        """What does fit, in words: the same shape fewer times, and the largest of that ratio and
        the largest square as often."""
        pixels, count = asked.width * asked.height, asked.count
        found = list[str]()
        for images in range(count - 1, 0, -1):
            if self._need(needs, pixels, images) <= room:
                found.append(_named(asked.width, asked.height, images))
                break
        for width, height in ((asked.width, asked.height), (1, 1)):
            for side in range(sizes.maximum, sizes.minimum - 1, -sizes.multiple):
                longest = max(width, height)
                across, down = [_multiple(side * one / longest, sizes) for one in (width, height)]
                if self._need(needs, across * down, count) <= room:
                    found.append(_named(across, down, count))
                    break
        told = list(dict.fromkeys(found))
        return f"{' or '.join(told)} fit" if told else "no size fits"


def _multiple(side: float, sizes: Sizes) -> int:
    return max(int(side) // sizes.multiple * sizes.multiple, sizes.minimum)


def _named(width: int, height: int, images: int) -> str:
    return f"{width}×{height}" if images == 1 else f"{images} pictures of {width}×{height}"


class Footprint:
    """What this process takes from now on.

    free: bytes of the GPU that nobody uses; None on a CPU
    """

    def __init__(self, free: Callable[[], int | None]) -> None:
        forget_peak()
        on_gpu = free()
        self._free, self._idle = free, resident() if on_gpu is None else 0
        self.room = room() if on_gpu is None else on_gpu

    @property
    def idle(self) -> int:
        """Bytes that it had before."""
        return self._idle or 0

    def grown(self) -> int | None:
        """Bytes that it has had more at most; None where nobody knows."""
        if (now := self._free()) is not None and self.room is not None:
            return self.room - now
        most = peak()
        return None if most is None or self._idle is None else most - self._idle


# Of this process, on Linux; None elsewhere.


def resident(proc: Path = Path("/proc")) -> int | None:
    """Bytes of memory that it has."""
    return _kib(proc / "self/status", "VmRSS")


def peak(proc: Path = Path("/proc")) -> int | None:
    """Bytes that it had at most, since it began or `forget_peak`. (What getrusage tells begins
    with what the process had that started this one.)"""
    return _kib(proc / "self/status", "VmHWM")


def forget_peak() -> None:
    """Where the system lets it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def room(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that it may take yet: of the machine, of its control groups, of its own limit."""
    known = [
        one
        for one in (
            _kib(proc / "meminfo", "MemAvailable"),
            _of_address_space(proc),
            *_of_groups(proc / "self/cgroup", groups),
        )
        if one is not None
    ]
    return max(min(known), 0) if known else None


def _of_address_space(proc: Path) -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _kib(proc / "self/status", "VmSize")
    return None if most == resource.RLIM_INFINITY or taken is None else most - taken


def _of_groups(said: Path, groups: Path) -> Iterator[int]:
    """Of each group that the process is in, and those around it."""
    with suppress(OSError):
        for line in said.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, names = groups, ("memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            # In a container the group's path may be of outside: its own is the root then.
            inner = root / path.strip("/")
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(root):
                    yield from _of_group(folder, *names)


def _of_group(folder: Path, limit: str, usage: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # "max" is no number
        most, taken = int((folder / limit).read_text()), int((folder / usage).read_text())
        if most < _NO_LIMIT:
            yield most - taken + _given_back(folder / "memory.stat")


def _given_back(stat: Path) -> int:
    """Bytes of files that the group would give back before anything else."""
    with suppress(OSError):
        found = re.search(r"^(?:total_)?inactive_file (\d+)$", stat.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def _kib(file: Path, name: str) -> int | None:
    with suppress(OSError):
        found = re.search(rf"^{name}:\s*(\d+) kB$", file.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None
