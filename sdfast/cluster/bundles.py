"""Bundles on the nodes of a cluster: whoever needs one has it already, or fetches it from a node
that does, once a node, into

    STORE/received/DIGEST/

where DIGEST is the sha256 of its bundle.json, which has those of all its files. It is written
beside its place, checked as every bundle is, and renamed: it is whole or not there. LoRA in a
bundle's folder are no part of it and stay where they are.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .. import bundle, checksums, store
from ..bundle import MANIFEST, Bundle
from ..compiled import locked
from ..errors import BundleError, OutputError
from ..provenance import digest

PIECE = 8 << 20  # bytes of a file that go through the object store at a time
_NAMESPACE = "sdfast bundles"


@dataclass(frozen=True)
class Offer:
    """A bundle that the nodes may have. source: the actor that gives it."""

    name: str
    digest: str
    source: Any


def offer(own: Bundle, *, lasting: bool = False) -> Offer:
    """That of a bundle on this node. lasting: beyond this process, until it is withdrawn."""
    found = digest(own.path)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
    if lasting:
        name = f"bundle {own.name} {secrets.token_hex(8)}"
        options |= {"name": name, "namespace": _NAMESPACE, "lifetime": "detached"}
    actor = ray.remote(_Source).options(**options).remote(str(own.path), found)
    return Offer(own.name, found, actor)


def withdraw() -> None:
    """Ends every lasting offer of this cluster: nodes that do not have the bundle stay without."""
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["namespace"] == _NAMESPACE:
            with suppress(ValueError):  # it has ended meanwhile
                ray.kill(ray.get_actor(one["name"], _NAMESPACE))


def received(offered: Offer) -> Path:
    """The folder of that bundle on this node, fetched where it has none. Not to be called on an
    event loop's thread. Raises BundleError and OutputError."""
    own = _own(offered.name, offered.digest)
    if own is not None:
        return own
    folder = _place(offered.digest)
    if _is(folder, offered.digest):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock"):
            if not _is(folder, offered.digest):
                _fetch(offered, folder)
    except OSError as error:
        raise OutputError(
            f"the bundle {offered.name} cannot be kept in {folder.parent} ({error.strerror}): set "
            "SDFAST_HOME to a folder that can be written"
        ) from error
    return folder


class _Source:
    """Gives the files of one bundle. Where its node is lost it comes up on another one, which has
    the bundle if it has opened it."""

    def __init__(self, folder: str, wanted: str) -> None:
        places = (Path(folder), _place(wanted))
        self._folder = next((place for place in places if _is(place, wanted)), None)
        self._files: set[str] = set()
        if self._folder is not None:
            self._files = {MANIFEST, *bundle.parse(self._folder / MANIFEST).files}

    def piece(self, name: str, start: int) -> bytes:
        """What a file has from there on, up to PIECE bytes; nothing at its end."""
        if self._folder is None:
            raise BundleError("no node that is left has the bundle: offer it again")
        if name not in self._files:
            raise BundleError(f"{name!r} is no file of the bundle")
        with (self._folder / name).open("rb") as stream:
            stream.seek(start)
            return stream.read(PIECE)


def _fetch(offered: Offer, folder: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _copy(offered, MANIFEST, temporary)
        if digest(temporary) != offered.digest:
            raise BundleError(f"{MANIFEST} of {offered.name} is not the one that was offered")
        for name in bundle.parse(temporary / MANIFEST).files:
            _copy(offered, name, temporary)
        bundle.load(temporary)
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(offered: Offer, name: str, folder: Path) -> None:
    """Writes a file of it, a piece at a time, the next one on its way meanwhile."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        coming, more = offered.source.piece.remote(name, 0), True
        while more:
            piece = _got(coming)
            if more := len(piece) == PIECE:
                coming = offered.source.piece.remote(name, stream.tell() + PIECE)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())


def _got(coming: Any) -> bytes:
    try:
        found: bytes = ray.get(coming)
    except ray.exceptions.RayTaskError as error:
        raise BundleError(f"a bundle cannot be fetched: {error.cause}") from None
    except ray.exceptions.RayActorError:
        raise BundleError("a bundle cannot be fetched: nobody offers it any more") from None
    return found


def _own(name: str, wanted: str) -> Path | None:
    """The folder of that name in this node's store, where it is that very bundle."""
    try:
        folder = store.find(name)
    except BundleError:
        return None
    return folder if _is(folder, wanted) else None


def _place(wanted: str) -> Path:
    return store.home() / "received" / wanted[:32]


def _is(folder: Path, wanted: str) -> bool:
    """Whether that bundle is there, and whole."""
    try:
        if digest(folder) != wanted:
            return False
        bundle.load(folder, store.home() / checksums.MEMORY)
    except (OSError, BundleError):
        return False
    return True
