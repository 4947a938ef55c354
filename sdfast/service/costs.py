"""What requests take, predicted from what others took."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import samplers
from ..composition import script
from ..guidance import Guidance
from ..request import Resolved

# The part that a new measurement has of what is believed: more where it is less, since the first
# of a shape may have compiled it.
_MORE, _LESS = 0.1, 0.5


@dataclass(frozen=True)
class Work:
    """What a request asks of a model.

    rows: by pixels of a picture, how many rows of the network are computed at that size
    pictures: by pixels, how many are decoded
    """

    model: str
    rows: dict[int, int]
    pictures: dict[int, int]


def work(model: str, request: Resolved) -> Work:
    """Raises InvalidRequest for prompts that cannot be read."""
    rows, pictures = dict[int, int](), dict[int, int]()
    each: Resolved | None = request
    while each is not None:
        steps, pixels = len(each.sigmas) - 1, each.width * each.height
        negative = None if each.guidance == 1 else each.negative_prompt
        said = script(each.prompt, negative, steps) if steps else None
        guidance = Guidance(each.guidance, each.guidance_rescale, each.guidance_interval)
        known = samplers.get(each.sampler).evaluations(steps) if steps else 0
        per_step = (3 * steps if known is None else known) / max(steps, 1)
        for sigma in each.sigmas[:-1]:
            count = said.count if said is not None else 0
            acting = count if guidance.acts(sigma) else 1
            rows[pixels] = rows.get(pixels, 0) + round(per_step * acting * each.count)
        pictures[pixels] = pictures.get(pixels, 0) + each.count
        each = each.second
    return Work(model, rows, pictures)


@dataclass
class Costs:
    """Seconds of a row and of the rest of a picture, by model and pixels: of each a mean of what
    was seen, in which the latest counts most. Unseen sizes are scaled from the nearest."""

    _rows: dict[str, dict[int, float]] = field(default_factory=dict)
    _pictures: dict[str, dict[int, float]] = field(default_factory=dict)

    def saw_rows(self, model: str, pixels: int, rows: int, seconds: float) -> None:
        _saw(self._rows.setdefault(model, {}), pixels, seconds / rows)

    def saw_picture(self, model: str, pixels: int, seconds: float) -> None:
        _saw(self._pictures.setdefault(model, {}), pixels, seconds)

    def predict(self, asked: Work) -> float:
        """Seconds of that work; 0 where nothing like it was seen."""
        of_rows = self._rows.get(asked.model, {})
        of_pictures = self._pictures.get(asked.model, {})
        return sum(count * _scaled(of_rows, pixels) for pixels, count in asked.rows.items()) + sum(
            count * _scaled(of_pictures, pixels) for pixels, count in asked.pictures.items()
        )


def _saw(known: dict[int, float], pixels: int, seconds: float) -> None:
    before = known.get(pixels, seconds)
    known[pixels] = before + (_LESS if seconds < before else _MORE) * (seconds - before)


def _scaled(known: dict[int, float], pixels: int) -> float:
    if not known:
        return 0.0
    nearest = min(known, key=lambda one: abs(one - pixels))
    return known[nearest] * pixels / nearest
