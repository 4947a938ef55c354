"""The connection to a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ..errors import BackendUnavailable, InvalidRequest

_MANY = 1 << 30


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Within it there is a cluster: the one that this process is connected to already, else that at
    the address (by default RAY_ADDRESS), else one of this machine alone, which ends with it.

    Raises BackendUnavailable where none answers.
    """
    if ray.is_initialized():
        yield
        return
    try:
        _reach(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise BackendUnavailable(
            f"there is no Ray cluster at {address or 'RAY_ADDRESS'} ({error}): give its "
            "--ray-address, or none to use this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT, for which Ray waits for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and host and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def places(cores: int, gpu: bool) -> int:
    """How many processes of so many cores, and a GPU each where they are to have one, the nodes
    that are alive have room for. Raises InvalidRequest where none."""
    found = sum(
        min(int(has.get("CPU", 0)) // cores, int(has.get("GPU", 0)) if gpu else _MANY)
        for has in _nodes()
    )
    if not found:
        raise InvalidRequest(
            f"no node of the cluster has {cores} core(s){' and a GPU' if gpu else ''}: ask for "
            "fewer, or start such a node"
        )
    return found


def cores_of_a_node() -> int:
    """Those of the smallest node that is alive and has any: what fits onto every one."""
    return min(filter(None, (int(has.get("CPU", 0)) for has in _nodes())), default=1)


def has_gpus() -> bool:
    """Whether a node that is alive has one."""
    return any(has.get("GPU", 0) for has in _nodes())


def _nodes() -> list[dict[str, float]]:
    """What each that is alive has."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in found if node["Alive"]]
