"""GET and POST options: what A1111's clients read, and send back as a whole.

The model is the one of them that may be changed: for the requests of whoever changes it, since it
is the caller's alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Body
from starlette.requests import Request

from .... import checks
from ....errors import InvalidRequest, nearest
from ..guard import owner

if TYPE_CHECKING:
    from ...gate import Model
    from ...service import Service

MODEL, CLIP_SKIP = "sd_model_checkpoint", "CLIP_stop_at_last_layers"
_LAYERS = 12
_CHOICES = 4096  # callers whose choice of a model is kept: then the one who chose longest ago goes
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "sd_vae": ("Automatic", "None", "", None),
    "samples_format": ("png",),
    "eta_noise_seed_delta": (0,),
    "img2img_fix_steps": (False,),
}
"""The others, which are as they are: the first value, and what says the same."""


@dataclass(frozen=True)
class Overridden:
    """What override_settings says. model: the bundle's name, None for the caller's usual one"""

    model: str | None
    clip_skip: int


def title(model: Model) -> str:
    """What clients show and send for a model."""
    return f"{model.name} [{model.digest[:10]}]"


def named(text: object, service: Service) -> str:
    """The name of the model that a title, a name or a digest stands for. Raises UnknownModel."""
    wanted = checks.text(MODEL, text)
    for model in service.models.values():
        if wanted in (title(model), model.digest[:10], model.digest):
            return model.name
    return service.model(wanted).name


def overridden(settings: Mapping[str, Any], service: Service) -> Overridden:
    """Of a request. Raises InvalidRequest for a setting that is not known, or has one value."""
    _check(settings)
    model, skip = settings.get(MODEL), settings.get(CLIP_SKIP)
    return Overridden(
        model=None if model in (None, "") else named(model, service),
        clip_skip=0 if skip is None else checks.whole(CLIP_SKIP, skip, 1, _LAYERS) - 1,
    )


class Chosen:
    """Which model each caller's requests are for that name none."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._names: dict[str, str] = {}

    def of(self, owner: str) -> str:
        return self._names.get(owner) or next(iter(self._service.models))

    def choose(self, owner: str, name: str) -> None:
        self._names.pop(owner, None)
        while len(self._names) >= _CHOICES:
            del self._names[next(iter(self._names))]
        self._names[owner] = name


def add(routes: APIRouter, service: Service, chosen: Chosen) -> None:
    """The routes."""

    @routes.get("/options")
    async def read(request: Request) -> dict[str, Any]:
        """What is set, for the caller."""
        model = service.model(chosen.of(owner(request)))
        return {
            MODEL: title(model),
            "sd_checkpoint_hash": model.digest,
            CLIP_SKIP: 1,
            **{name: values[0] for name, values in _FIXED.items()},
        }

    @routes.post("/options")
    async def write(request: Request, settings: Annotated[dict[str, Any], Body()]) -> None:
        """Takes what `GET options` told back, and another sd_model_checkpoint: for the caller's own
        requests from then on. Whatever else is changed is refused."""
        others = {k: v for k, v in settings.items() if k != "sd_checkpoint_hash"}
        found = overridden(others, service)
        if found.clip_skip:
            raise InvalidRequest(
                f"{CLIP_SKIP} is of one request alone: send it as its override_settings"
            )
        if found.model is not None:
            chosen.choose(owner(request), found.model)


def _check(settings: Mapping[str, Any]) -> None:
    known = (MODEL, CLIP_SKIP, *_FIXED)
    for name, value in settings.items():
        if name not in known:
            raise InvalidRequest(
                f"setting {name[:64]!r} is not known{nearest(name[:64], known)}; known: "
                + ", ".join(known)
            )
        if name in _FIXED and not any(value is v or value == v for v in _FIXED[name]):
            raise InvalidRequest(
                f"{name} is another here: it is always {_FIXED[name][0]!r}; leave it out"
            )
