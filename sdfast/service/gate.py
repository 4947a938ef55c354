"""The gate: what a service accepts, asked before anything is done for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .. import checks
from ..bundle import Bundle, Manifest
from ..errors import nearest
from ..request import Request, Resolved, resolve
from . import given
from .limits import Limits
from .refusals import Infeasible, Overloaded, TooLarge, UnknownModel


@dataclass(frozen=True)
class Model:
    """A bundle that is served. digest: of its manifest, which has those of its files."""

    name: str
    digest: str
    bundle: Bundle

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest


@dataclass(frozen=True)
class Checked:
    """A request that can be drawn. request: with every default filled in."""

    request: Request
    resolved: Resolved


@dataclass(frozen=True)
class Gate:
    """See the module. controls: the ControlNets that are served; loras: whether prompts may name
    LoRA; lora_dir: where those are that are of no bundle."""

    models: Mapping[str, Model]
    controls: Mapping[str, Bundle]
    limits: Limits
    loras: bool
    lora_dir: Path | None

    def model(self, name: str | None) -> Model:
        """That of the name; without one the first. Raises UnknownModel."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModel(
                f"there is no model {name[:64]!r}{nearest(name[:64], self.models)}; known: "
                f"{', '.join(self.models)}"
            )
        return self.models[name]

    def named_loras(self, model: Model) -> tuple[str, ...]:
        """The LoRA that prompts for a model may name; none where they may name none."""
        if not self.loras:
            return ()
        from .. import loras  # which loads what no other request needs

        own = model.bundle.path / loras.FOLDER
        return loras.names([own, *([self.lora_dir] if self.lora_dir else [])])

    def checked(self, request: Request, model: Model, precision: str) -> Checked:
        """Raises TooLarge, or another SdfastError for what nobody could draw."""
        names = partial(self.named_loras, model) if self.loras else None
        checked = given.checked(request, self.limits, self.controls, names)
        resolved = resolve(checked, model.bundle, precision)
        each: Resolved | None = resolved
        most = self.limits.pixels or model.manifest.sizes.maximum**2
        while each is not None:
            if each.width * each.height > most:
                raise TooLarge(
                    f"the picture would be {each.width}×{each.height}; {most} pixels are allowed: "
                    "ask for a smaller one"
                )
            each = each.second
        control = checked.control
        full = replace(
            resolved.as_request(), image=checked.image, mask=checked.mask, control=control
        )
        return Checked(full, resolved)

    def count(self, waiting: int, running: int, seconds: float) -> None:
        """Whether one more may wait. seconds: of work that is accepted already. Raises Overloaded,
        in no time."""
        if waiting >= self.limits.queue and running >= self.limits.running:
            raise Overloaded("too many requests wait: ask again later", _again(seconds / 10))

    def deadline(self, asked: float | None) -> float:
        """Seconds that a request may take."""
        most = self.limits.deadline
        return most if asked is None else min(checks.number("deadline", asked, 0, 10**9), most)

    def time(self, seconds: float, allowed: float, others: Sequence[float]) -> None:
        """Whether work of so many seconds can be done in those that are allowed, beside that of the
        others. Raises Infeasible and Overloaded."""
        if seconds > allowed:
            raise Infeasible(
                f"the request takes about {seconds:.0f} seconds, and its deadline is {allowed:g}: "
                "allow more, or ask for less"
            )
        before = sum(others)
        if before and before + seconds > self.limits.queue_seconds:
            wait = _again(before + seconds - self.limits.queue_seconds)
            raise Overloaded("too much work waits: ask again later", wait)
        # Each of the others has its turn beside it until one of the two is done.
        shared = seconds + sum(min(seconds, left) for left in others)
        if shared > allowed:
            raise Overloaded(
                f"with what waits already the request would take about {shared:.0f} seconds, and "
                f"its deadline is {allowed:g}: ask again later",
                _again(shared - allowed),
            )


def _again(seconds: float) -> float:
    """After how many seconds to ask again: some, and not hours."""
    return min(max(seconds, 0.1), 120.0)
