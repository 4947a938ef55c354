"""sdfast serve: the service over HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import BackendUnavailable, InvalidRequest
from ..service.limits import ORDERS, Limits

if TYPE_CHECKING:
    from ..service.http.settings import Settings

_C = TypeVar("_C", bound=Callable[..., Any])
_MIB = 1 << 20
_LIMITS: tuple[tuple[str, str, str], ...] = (
    ("queue", "REQUESTS", "That wait at most; others are told 429."),
    ("queue_seconds", "SECONDS", "Of predicted work that waits at most."),
    ("running", "REQUESTS", "That share the network's calls."),
    ("rows", "ROWS", "Of the network in one call; 0: by the machine."),
    ("images", "N", "Of one request."),
    ("steps", "N", "Of one request."),
    ("pixels", "PIXELS", "Width × height that is drawn; 0: what the bundle draws."),
    ("prompt", "CHARACTERS", "Of a prompt."),
    ("body", "BYTES", "Of an HTTP request."),
    ("input_pixels", "PIXELS", "Width × height of a picture that is given."),
    ("memory", "BYTES", "That drawing may take; 0: what the machine has."),
    ("deadline", "SECONDS", "That a request may take, waiting included."),
    ("stall", "SECONDS", "After which a silent worker is restarted."),
    ("drain", "SECONDS", "For what was accepted, when the service ends."),
    ("canary", "SECONDS", "Between drawings of the golden picture; 0: once."),
)
"""Each field of Limits as an option."""


def _of_limits(command: _C) -> _C:
    usual = Limits()
    for name, metavar, text in reversed(_LIMITS):
        value = getattr(usual, name)
        command = click.option(
            f"--{name.replace('_', '-')}",
            type=type(value),
            default=value,
            show_default=True,
            metavar=metavar,
            help=text,
        )(command)
    return command


@click.command(context_settings={"auto_envvar_prefix": "SDFAST_SERVE"})
@click.argument("bundles", nargs=-1, metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=int, default=8000, show_default=True, help="0 for a free one.")
@click.option(
    *("--api-key", "api_keys"),
    multiple=True,
    metavar="KEY",
    help="That callers must have; may be given again. Better: in SDFAST_API_KEYS, with spaces.",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without an API key.")
@click.option(
    *("--cors-origin", "cors_origins"),
    multiple=True,
    metavar="ORIGIN",
    help="Whose pages may call, such as https://gallery.example; may be given again.",
)
@click.option(
    *("--allowed-host", "allowed_hosts"),
    multiple=True,
    metavar="NAME",
    help="By which it may be called beside localhost; may be given again.",
)
@click.option(
    *("--order",),
    type=click.Choice(ORDERS),
    default=ORDERS[0],
    show_default=True,
    help="fair: all go on at the same pace; shortest: the least work left first.",
)
@click.option("--backend", default="auto", show_default=True, help="See `sdfast doctor`.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--precision", default="auto", show_default=True, help="fp32, bf16 or fp16.")
@click.option("--threads", type=int, default=0, help="Of the CPU. [one on each core]")
@click.option("--loras", is_flag=True, help="Prompts may name LoRA of the bundle's own folder.")
@click.option(
    "--lora-dir", type=click.Path(path_type=Path), help="A folder of more of them, which allows it."
)
@_of_limits
@click.option(
    "--body-seconds", type=float, default=60.0, show_default=True, help="For a body to come."
)
@click.option(
    *("--write-seconds",),
    type=float,
    default=60.0,
    show_default=True,
    help="After which who takes nothing of an answer is dropped.",
)
@click.option("--ray", "on_ray", is_flag=True, help="Serve on a Ray cluster.")
@click.option("--ray-address", help="Of a cluster that runs. [RAY_ADDRESS, or this machine alone]")
@click.option(
    *("--replicas",), metavar="MIN:MAX", default="", help="On Ray. [1 to what there is room for]"
)
@click.option("--cores", type=int, default=0, help="Of each replica on Ray. [a whole node's]")
@click.option("--log-prompts", is_flag=True, help="Have prompts in the log.")
def serve(
    bundles: tuple[str, ...],
    api_keys: tuple[str, ...],
    insecure: bool,
    order: str,
    backend: str,
    device: str,
    precision: str,
    threads: int,
    loras: bool,
    lora_dir: Path | None,
    on_ray: bool,
    ray_address: str | None,
    replicas: str,
    cores: int,
    **options: Any,
) -> None:
    """Serve BUNDLEs over HTTP: OpenAI's Images API, A1111's, and sdfast's own.

    \b
    sdfast serve
    sdfast serve demo --port 9000 --queue 128
    SDFAST_API_KEYS=secret sdfast serve --host 0.0.0.0
    sdfast serve --ray-address auto --replicas 2:8 --cores 8

    The first BUNDLE [demo] is the default of requests that name none; ControlNets' steer. Every
    option may be in the environment: SDFAST_SERVE_PORT, SDFAST_SERVE_QUEUE_SECONDS, …
    """
    try:
        from ..service.http import serving
        from ..service.http.guard import JsonLines
        from ..service.http.settings import Settings
        from ..service.service import Service
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"serving needs {error.name}, which is not installed: pip install sdfast[serve]"
        ) from error

    limits = Limits(**{one.name: options.pop(one.name) for one in fields(Limits)})
    settings = Settings(api_keys=_keys(api_keys), **options)
    if not (settings.loopback or settings.api_keys or insecure):
        raise InvalidRequest(
            f"host {settings.host} is reached by others: give an --api-key (or SDFAST_API_KEYS), "
            "or --insecure where something else keeps them out"
        )
    _log(JsonLines())
    opening: dict[str, Any] = {
        "limits": limits,
        "backend": backend,
        "device": device,
        "precision": precision,
        "order": order,
        "loras": loras,
        "lora_dir": lora_dir,
    }
    if on_ray or ray_address is not None:
        _on_ray(bundles or ("demo",), ray_address, replicas, cores or threads, settings, opening)
        return
    service = Service(bundles or ("demo",), threads=threads, **opening)
    serving.serve(service, settings, _listening)


def _on_ray(
    bundles: tuple[str, ...],
    address: str | None,
    replicas: str,
    cores: int,
    settings: Settings,
    opening: dict[str, Any],
) -> None:
    from ..cluster.connection import connected
    from ..service import ray

    wanted = ray.Replicas.told(replicas, cores)
    with connected(address):
        made = ray.deployment(bundles, settings=settings, replicas=wanted, **opening)
        ray.run(made, opening["limits"], settings, _listening)


def _listening(url: str) -> None:
    click.echo(f"listening at {url}", err=True)


def _keys(given: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the options, and of the environment."""
    names = ("SDFAST_API_KEY", "SDFAST_API_KEYS")
    told = [key for name in names for key in os.environ.get(name, "").replace(",", " ").split()]
    return tuple(dict.fromkeys((*given, *told)))


def _log(form: logging.Formatter) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(form)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
