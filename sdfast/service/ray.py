"""The service on Ray Serve: a replica on every GPU, or on so many cores, each with a Service of its
own, whose requests share the network's calls.

    serve run sdfast.service.ray:app

is told the rest by the environment, as `sdfast serve` is: SDFAST_SERVE_BUNDLES, _QUEUE, _BACKEND …,
and SDFAST_SERVE_REPLICAS=MIN:MAX and SDFAST_SERVE_CORES. `sdfast serve --ray` does the same.

A replica gets requests from Ray when it is ready, up to what its Service runs and lets wait, and a
few more, so that it is the Service that refuses, by predicted seconds; what is beyond that waits at
Ray's proxies, and beyond that is refused by them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import store
from ..cluster.bundles import Offer, offer, received, withdraw
from ..cluster.connection import cores_of_a_node, has_gpus, places
from ..errors import BackendUnavailable, InvalidRequest, SdfastError
from .http.app import app as over_http
from .http.guard import JsonLines
from .http.settings import Settings
from .limits import Limits
from .service import Service

NAME = "sdfast"
PREFIX = "SDFAST_SERVE_"
_SPARE = 8  # requests of a replica beside jobs: health, metrics, and those that it refuses
_CLOSING = 15.0  # seconds for answers to leave
_OWN = ("backend", "device", "precision", "order", "lora_dir")  # of a Service, given as they are
_T = TypeVar("_T")


@dataclass(frozen=True)
class Replicas:
    """How many there are, and what each has.

    least, most: between which Ray chooses by the requests that there are; most 0 for as many as
        there is room for when the service starts
    cores: of the CPU; 0 for those of the smallest node, or 1 beside a GPU
    """

    least: int = 1
    most: int = 0
    cores: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= (self.most or self.least) or self.cores < 0:
            raise InvalidRequest(
                f"replicas are {self.least}:{self.most} of {self.cores} cores; they must be "
                "MIN:MAX from 1 upward, as 1:4"
            )

    @classmethod
    def told(cls, text: str, cores: int) -> Replicas:
        """Of MIN:MAX, or of one number for both; of nothing, as many as there is room for."""
        least, _, most = text.partition(":")
        try:
            numbers = (int(least), int(most or least)) if text else (1, 0)
        except ValueError:
            raise InvalidRequest(f"replicas is {text!r}; it must be MIN:MAX, as 1:4") from None
        return cls(*numbers, cores)


def deployment(
    bundles: Sequence[str | Path] = ("demo",),
    *,
    limits: Limits | None = None,
    settings: Settings | None = None,
    replicas: Replicas | None = None,
    device: str = "auto",
    **options: Any,
) -> serve.Application:
    """The service as an application for `serve.run`, on the cluster that this process is connected
    to. The bundles are this node's; the others fetch what they do not have.

    options: Service's own: backend, precision, order, loras, lora_dir (a folder on every node)
    Raises BundleError and InvalidRequest.
    """
    limits, settings, replicas = limits or Limits(), settings or Settings(), replicas or Replicas()
    on_gpu = device.startswith("cuda") or (device == "auto" and has_gpus())
    cores = replicas.cores or (1 if on_gpu else cores_of_a_node())
    most = replicas.most or max(places(cores, on_gpu), replicas.least)
    offers = [offer(store.load(one), lasting=True) for one in bundles]
    options |= {"threads": cores, "device": device.partition(":")[0]}  # the GPU that Ray gives it
    taken = limits.running + limits.queue + _SPARE
    made: Any = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": cores, "num_gpus": 1 if on_gpu else 0},
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": most,
            "target_ongoing_requests": limits.running,  # beyond these they wait
        },
        max_ongoing_requests=taken,
        max_queued_requests=taken,  # of each proxy, where also those are that look for a replica
        backpressure_config={"status_code": 429, "retry_after_s": _again(limits)},
        # What a replica has accepted is done or refused by then.
        graceful_shutdown_timeout_s=limits.deadline + limits.drain + _CLOSING,
        health_check_period_s=10.0,  # three that fail have another one take its place
        logging_config={"enable_access_log": False},
    )(serve.ingress()(Replica))
    application: serve.Application = made.bind(offers, limits, settings, options)
    return application


def app(_arguments: dict[str, str]) -> serve.Application:
    """That of the environment, for `serve run`, `serve deploy` and their configuration files."""
    limits = Limits(**_told(Limits))
    settings = Settings(**_told(Settings), api_keys=_keys())
    if not (settings.loopback or settings.api_keys or _flag("INSECURE")):
        raise InvalidRequest(
            f"{PREFIX}HOST {settings.host} is reached by others: set SDFAST_API_KEYS, or "
            f"{PREFIX}INSECURE=1 where something else keeps them out"
        )
    cores = _said("CORES") or _said("THREADS")
    return deployment(
        os.environ.get(f"{PREFIX}BUNDLES", "demo").split(),
        limits=limits,
        settings=settings,
        replicas=Replicas.told(_said("REPLICAS") or "", _number("cores", int, cores, 0)),
        loras=_flag("LORAS"),
        **{name: value for name in _OWN if (value := _said(name.upper())) is not None},
    )


def run(
    made: serve.Application, limits: Limits, settings: Settings, listening: Callable[[str], None]
) -> None:
    """Serves until a signal, then ends the service: what was accepted is answered before. The
    second signal ends it at once.

    listening: is told the address, when requests are drawn
    Raises BackendUnavailable where it does not start.
    """
    serve.start(proxy_location="EveryNode", http_options=http_options(limits, settings))
    over = threading.Event()
    try:
        serve.run(made, name=NAME)
        listening(f"http://{settings.host}:{settings.port}")
        usual = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        for one in usual:
            signal.signal(one, lambda *_: over.set())
        over.wait()
        for one, handler in usual.items():
            signal.signal(one, handler)
    except RuntimeError as error:
        raise BackendUnavailable(f"the service does not start on Ray: {error}") from error
    finally:
        serve.delete(NAME)
        withdraw()


def http_options(limits: Limits, settings: Settings) -> dict[str, Any]:
    """Of Ray's proxies: what one that hangs leaves open ends after the longest deadline."""
    if not settings.port:
        raise InvalidRequest("port is 0, which Ray's proxies cannot choose from: give one")
    return {
        "host": settings.host,
        "port": settings.port,
        "request_timeout_s": limits.deadline + _CLOSING,
    }


class Replica:
    """One of them: a Service, ready before Ray sends it anything, and HTTP over it."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self,
        offers: Sequence[Offer],
        limits: Limits,
        settings: Settings,
        options: Mapping[str, Any],
    ) -> None:
        _log()

        def made() -> Service:
            return Service([received(one) for one in offers], limits=limits, **options)

        self._service, self._settings = await asyncio.to_thread(made), settings

    def __serve_build_asgi_app__(self) -> ASGIApp:  # as Ray calls it
        return _when_ready(over_http(self._service, self._settings))

    async def check_health(self) -> None:
        """Raises where it draws nothing now: after a while Ray has another one take its place."""
        if (reason := self._service.readiness()) is not None:
            raise RuntimeError(reason)


def _when_ready(made: FastAPI) -> ASGIApp:
    """The application, whose startup is over when its service is ready, or has failed."""

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        async def telling(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    await made.state.starting
                except SdfastError as error:
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
            await send(message)

        await made(scope, receive, telling if scope["type"] == "lifespan" else send)

    return whole


def _again(limits: Limits) -> int:
    """Seconds after which what Ray's proxies refuse may find a place: a tenth of a full queue."""
    return math.ceil(limits.queue_seconds / 10)


def _log() -> None:
    """Into the replica's own files among Ray's."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("sdfast")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


# The environment.


def _said(name: str) -> str | None:
    return os.environ.get(PREFIX + name) or None


def _flag(name: str) -> bool:
    return (_said(name) or "").lower() in ("1", "true", "yes", "on")


def _number(name: str, kind: Callable[[str], _T], text: str | None, usual: _T) -> _T:
    try:
        return usual if text is None else kind(text)
    except ValueError:
        raise InvalidRequest(f"{PREFIX}{name.upper()} is {text!r}; it must be a number") from None


def _told(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass that the environment says, by the types of their defaults."""
    usual, found = kind(), dict[str, Any]()
    for one in fields(kind):
        value, text = getattr(usual, one.name), _said(one.name.upper())
        if text is None or one.name == "api_keys":
            continue
        if isinstance(value, bool):
            found[one.name] = _flag(one.name.upper())
        elif isinstance(value, tuple):
            found[one.name] = tuple(text.split())
        elif isinstance(value, str):
            found[one.name] = text
        else:
            found[one.name] = _number(one.name, type(value), text, value)
    return found


def _keys() -> tuple[str, ...]:
    names = ("SDFAST_API_KEY", "SDFAST_API_KEYS", f"{PREFIX}API_KEYS")
    told = [key for name in names for key in os.environ.get(name, "").replace(",", " ").split()]
    return tuple(dict.fromkeys(told))
