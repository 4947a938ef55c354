"""The repository's folders: each is there whole or not at all."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from .. import backends, loras
from ..bundle import MANIFEST, TASKS, Bundle, Network
from ..errors import InvalidRequest, OutputError, nearest
from . import configuration

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_VERSION = "1"


def export(
    bundle: Bundle,
    folder: Path,
    *,
    name: str | None = None,
    device: str = "cpu",
    instances: int = 1,
    parameters: Mapping[str, str] | None = None,
    networks: Sequence[str] = (),
) -> list[Path]:
    """Writes a bundle, as a model that draws, into a model repository, which may have others.

    name: of the model, by default the bundle's
    device: "cpu" or "cuda"; instances: processes, on a GPU of each one
    parameters: backend and precision, as of sdfast.load, where they are not "auto"
    networks: of the bundle, to be models of their own as well, NAME_NETWORK
    Returns their folders. Raises InvalidRequest for what cannot be, OutputError where there is such
    a folder or none can be.
    """
    name = bundle.name if name is None else name
    _check(bundle, name, device, instances, networks)
    given = {key: value for key, value in (parameters or {}).items() if value != "auto"}
    if "backend" in given and given["backend"] not in backends.BACKENDS[device]:
        raise InvalidRequest(
            f"backend {given['backend']!r} does not run on {device}; use one of "
            f"{', '.join(backends.BACKENDS[device])}"
        )
    if given.get("precision", "fp32") not in backends.PRECISIONS:
        raise InvalidRequest(
            f"precision {given['precision']!r} is unknown; use one of "
            f"{', '.join(backends.PRECISIONS)}"
        )
    targets = [folder / name, *(folder / f"{name}_{network}" for network in networks)]
    for target in targets:
        if target.exists():
            raise OutputError(f"{target} is there already: remove it, or give another --name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as made:
            parts = [Path(made) / target.name for target in targets]
            _drawing(bundle, parts[0], configuration.of_bundle(name, device, instances, given))
            for network, part in zip(networks, parts[1:], strict=True):
                _alone(bundle, bundle.manifest.networks[network], part, device)
            for part, target in zip(parts, targets, strict=True):
                part.rename(target)
    except OSError as error:
        raise OutputError(
            f"folder {folder} cannot be written ({error.strerror}): choose another"
        ) from error
    return targets


def _check(bundle: Bundle, name: str, device: str, instances: int, networks: Sequence[str]) -> None:
    if bundle.manifest.task not in TASKS[:2]:
        raise InvalidRequest(
            f"bundle {bundle.name} is for task {bundle.manifest.task}; pictures are drawn by "
            f"bundles of task {' or '.join(TASKS[:2])}: use one of those"
        )
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"name {name!r} is no folder's; use letters, digits, hyphens, dots and underscores"
        )
    if device not in configuration.KINDS:
        raise InvalidRequest(f"device is {device!r}; it must be cpu or cuda")
    if not 1 <= instances <= 64:
        raise InvalidRequest(f"instances is {instances}; it must be from 1 to 64")
    for network in networks:
        known = bundle.manifest.networks
        if network not in known:
            raise InvalidRequest(
                f"bundle {bundle.name} has no network {network!r}{nearest(network, known)}; it "
                f"has {', '.join(known)}"
            )
    if len(set(networks)) != len(networks):
        raise InvalidRequest("a network is named twice: once is enough")


def _drawing(bundle: Bundle, target: Path, config: str) -> None:
    """The model that draws: its configuration, its code, and all that the bundle is."""
    version = _begun(target, config)
    shutil.copyfile(Path(__file__).parent / "model.py", version / "model.py")
    for file in (MANIFEST, *bundle.manifest.files):
        _put(bundle.path / file, version / "bundle" / file)
    own = bundle.path / loras.FOLDER
    for one in loras.names([own]):
        _put(loras.find(one, [own]), version / "bundle" / loras.FOLDER / f"{one}.safetensors")


def _alone(bundle: Bundle, network: Network, target: Path, device: str) -> None:
    """A network as a model of Triton's ONNX Runtime backend, which opens 1/model.onnx and what it
    points into beside it."""
    version = _begun(target, configuration.of_network(target.name, network, device))
    _put(bundle.path / network.file, version / "model.onnx")
    inside = PurePosixPath(network.file).parent
    for weights in network.weights:
        _put(bundle.path / weights, version / PurePosixPath(weights).relative_to(inside))


def _begun(target: Path, config: str) -> Path:
    """The folder of the model's one version."""
    version = target / _VERSION
    version.mkdir(parents=True)
    (target / "config.pbtxt").write_text(config, encoding="utf-8")
    return version


def _put(source: Path, target: Path) -> None:
    """A copy: what reads ONNX's external data refuses files of two names, here and where they come
    from."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
