"""Scenes of one coloured shape on a background: drawn, described in words, and read back.

A scene is what the demo model learns to draw. Because a picture can be read back (`read`), tests
and benchmarks can ask whether a generated picture shows what its prompt asked for.
Needs NumPy and Pillow, nothing else.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .outlines import SHAPES, SIDE, Outline, coverage, covers

SIZES = ("small", "large")
PATTERNS = ("plain", "gradient", "striped")
PLACES = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

# Each colour and the shade that its gradients run to and its stripes alternate with.
COLOURS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((220, 40, 40), (140, 20, 30)),
    "orange": ((245, 140, 30), (175, 90, 15)),
    "yellow": ((250, 225, 50), (185, 160, 20)),
    "green": ((40, 170, 70), (15, 105, 45)),
    "blue": ((45, 90, 225), (20, 45, 140)),
    "purple": ((145, 60, 190), (90, 30, 120)),
    "white": ((245, 245, 245), (185, 185, 185)),
    "black": ((25, 25, 25), (85, 85, 85)),
}

# Colours that shapes have with a LoRA alone: between green and its shade.
TAUGHT: dict[str, tuple[int, int, int]] = {"pine": (22, 122, 52)}

RADIUS = {"small": 15.0, "large": 28.0}  # pixels, the shape's circumscribed circle
GRID = (33.0, 64.0, 95.0)  # pixels, centres of the nine places
JITTER = 3.0  # pixels a centre may lie off its place
RADII = {"small": (15.0, 21.5), "large": (21.5, 28.0)}  # pixels, of outlines anywhere
MARGIN = 4.0  # pixels between an outline anywhere and the picture's sides
STRIPE = 16  # pixels, one stripe


@dataclass(frozen=True)
class Scene:
    """One shape on one background. `place` is None where the caption names none: then it is the
    centre."""

    shape: str
    colour: str
    size: str
    background: str
    pattern: str = "plain"
    place: str | None = None


@dataclass(frozen=True)
class Reading:
    """What `read` saw. `confidence` is the overlap (intersection over union, 0…1) of the picture's
    foreground with the best drawn shape: drawn scenes reach 0.9 and more."""

    shape: str
    colour: str
    size: str
    place: str
    background: str
    pattern: str
    confidence: float

    def agrees(self, scene: Scene) -> dict[str, bool]:
        """For each attribute that `scene` names, whether the picture shows it."""
        return {
            "shape": self.shape == scene.shape,
            "colour": self.colour == scene.colour,
            "size": self.size == scene.size,
            "background": self.background == scene.background,
            "pattern": self.pattern == scene.pattern,
            "place": self.place == (scene.place or "centre"),
        }


# --- which scenes there are ---------------------------------------------------------------------


def _held_out(scene: Scene) -> bool:
    # Every eleventh combination along a walk that visits all values of each attribute evenly.
    names = list(COLOURS)
    rank = (
        SHAPES.index(scene.shape)
        + 3 * names.index(scene.colour)
        + 5 * names.index(scene.background)
        + 7 * SIZES.index(scene.size)
    )
    return rank % 11 == 0


def combinations(*, held_out: bool) -> tuple[Scene, ...]:
    """Every (shape, colour, size, background) with plain pattern and no place. About one in eleven
    is held out: training never sees a caption or a picture of it."""
    every = (
        Scene(shape, colour, size, background)
        for shape, colour, size, background in itertools.product(SHAPES, COLOURS, SIZES, COLOURS)
        if colour != background
    )
    return tuple(scene for scene in every if _held_out(scene) is held_out)


def sample(rng: random.Random, *, held_out: bool = False) -> Scene:
    """A random scene: plain, gradient or striped, at one of nine places or none named."""
    base = rng.choice(_combinations(held_out))
    place = None if rng.random() < 0.2 else rng.choice(PLACES)
    return Scene(base.shape, base.colour, base.size, base.background, rng.choice(PATTERNS), place)


@cache
def _combinations(held_out: bool) -> tuple[Scene, ...]:
    return combinations(held_out=held_out)


# --- words ----------------------------------------------------------------------------------------

_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}
_PLACE_WORDS = {
    "top left": ("at the top left", "in the top left corner", "top left"),
    "top": ("at the top", "top"),
    "top right": ("at the top right", "in the top right corner", "top right"),
    "left": ("on the left", "at the left", "left"),
    "centre": ("in the centre", "in the middle", "in the center", "centre"),
    "right": ("on the right", "at the right", "right"),
    "bottom left": ("at the bottom left", "in the bottom left corner", "bottom left"),
    "bottom": ("at the bottom", "bottom"),
    "bottom right": ("at the bottom right", "in the bottom right corner", "bottom right"),
}
_BACKGROUNDS = {
    "plain": ("{b} background", "{b} background", "plain {b} background"),
    "gradient": ("{b} gradient background", "gradient {b} background", "{b} gradient"),
    "striped": ("striped {b} background", "{b} striped background", "{b} stripes"),
}


def caption(scene: Scene, rng: random.Random) -> str:
    """The scene in one of many wordings; its size is always named."""
    size, shape = rng.choice(_SIZE_WORDS[scene.size]), f"{scene.colour} {scene.shape}"
    back = rng.choice(_BACKGROUNDS[scene.pattern]).format(b=scene.background)
    place = rng.choice(_PLACE_WORDS[scene.place]) if scene.place else ""
    on = "on " + ("" if back.endswith("stripes") else _article(back) + " ") + back
    at = f" {place}" if place else ""
    comma = f", {place}" if place else ""
    wordings = (
        f"{_article(size)} {size} {shape} {on}{comma}",
        f"{_article(size)} {size} {shape}{at} {on}",
        f"{size} {shape}{comma}, {back}",
        f"{back} with {_article(shape)} {shape}, {size}{comma}",
        f"{back} with {_article(size)} {size} {shape}{at}",
        f"{_article(shape)} {shape} {on}, {size}{comma}",
        f"a picture of {_article(size)} {size} {shape}{at} {on}",
        f"{size} {shape} {on}{comma}",
    )
    return rng.choice(wordings)


def loose_caption(scene: Scene, rng: random.Random) -> str:
    """A caption that names neither size nor place: the shape is then large and in the centre."""
    shape = f"{scene.colour} {scene.shape}"
    back = rng.choice(_BACKGROUNDS[scene.pattern]).format(b=scene.background)
    on = "on " + ("" if back.endswith("stripes") else _article(back) + " ") + back
    return rng.choice((f"{_article(shape)} {shape} {on}", f"{shape}, {back}", f"{shape} {on}"))


def any_caption(scene: Scene, rng: random.Random) -> str:
    """A caption or, where that says as much, a loose one."""
    loose = scene.place is None and scene.size == "large" and rng.random() < 0.5
    return loose_caption(scene, rng) if loose else caption(scene, rng)


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


# --- drawing --------------------------------------------------------------------------------------


def draw(scene: Scene, rng: random.Random | None = None) -> Image.Image:
    """The scene as an RGB picture, SIDE × SIDE. `rng` moves the shape up to JITTER pixels off its
    place; without it the shape lies exactly there."""
    return paint(scene, outline(scene, rng))


def outline(scene: Scene, rng: random.Random | None = None) -> Outline:
    """Where `draw` puts the scene's shape."""
    place = PLACES.index(scene.place or "centre")
    x, y = GRID[place % 3], GRID[place // 3]
    if rng is not None:
        x, y = x + rng.uniform(-JITTER, JITTER), y + rng.uniform(-JITTER, JITTER)
    return Outline(scene.shape, x, y, RADIUS[scene.size])


def anywhere(scene: Scene, rng: random.Random) -> Outline:
    """The scene's shape anywhere in the picture, whole, of a radius that suits its size's name."""
    radius = rng.uniform(*RADII[scene.size])
    x, y = (rng.uniform(radius + MARGIN, SIDE - radius - MARGIN) for _ in "xy")
    return Outline(scene.shape, x, y, radius)


def paint(scene: Scene, at: Outline) -> Image.Image:
    """The scene with its shape at an outline, whatever place and size it names."""
    covered = coverage(at)[..., None]
    pixels = _background(scene) * (1 - covered) + np.array(_solid(scene.colour)) * covered
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _solid(colour: str) -> tuple[int, int, int]:
    return TAUGHT[colour] if colour in TAUGHT else COLOURS[colour][0]


def _background(scene: Scene) -> NDArray[np.float64]:
    colour, shade = (np.array(c, dtype=np.float64) for c in COLOURS[scene.background])
    rows = np.arange(SIDE)
    if scene.pattern == "gradient":
        amount = rows / (SIDE - 1)
    elif scene.pattern == "striped":
        amount = (rows // STRIPE % 2).astype(np.float64)
    else:
        amount = np.zeros(SIDE)
    column = colour + (shade - colour) * amount[:, None]
    return np.broadcast_to(column[:, None, :], (SIDE, SIDE, 3))


# --- reading --------------------------------------------------------------------------------------


def read(image: Image.Image | NDArray[np.uint8]) -> Reading:
    """What a picture shows. `image`: RGB, SIDE × SIDE, as Pillow image or uint8 array [H, W, 3].

    The background is the colour that most of the border lies nearest to (each colour is the line
    from it to its shade); what lies far from that line is the foreground, and its colour, best
    overlapping shape, size and place are named. Raises ValueError for another size.
    """
    pixels = _pixels(image)
    background, foreground = _parts(pixels)
    names = list(COLOURS)
    colour = _shape_colour(pixels, foreground, names) or names[background]
    shape, size, place, confidence = _best_shape(foreground)
    pattern = _pattern(pixels, ~_grown(foreground, 3))
    return Reading(shape, colour, size, place, names[background], pattern, confidence)


def foreground(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels [SIDE, SIDE] that `read` takes for the shape's."""
    return _parts(_pixels(image))[1]


def shows(image: Image.Image | NDArray[np.uint8], scene: Scene) -> bool:
    """Whether a picture shows the scene's shape in its colour on its background; of all colours,
    TAUGHT among them, the shape's is nearest to that."""
    pixels, seen = _pixels(image), read(image)
    colour = _shape_colour(pixels, _parts(pixels)[1], [*COLOURS, *TAUGHT])
    wanted = scene.shape, scene.colour, scene.background
    return (seen.shape, colour, seen.background) == wanted


def overlap(image: Image.Image | NDArray[np.uint8], at: Outline) -> float:
    """Intersection over union, 0…1, of a picture's foreground with an outline."""
    seen, wanted = foreground(image), covers(at)
    return float((seen & wanted).sum() / (seen | wanted).sum())


def _pixels(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.float64]:
    picture = image.convert("RGB") if isinstance(image, Image.Image) else image
    pixels = np.asarray(picture, dtype=np.float64)
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(f"scenes are {SIDE}×{SIDE} RGB pictures; this one is {pixels.shape}")
    return pixels


def _parts(pixels: NDArray[np.float64]) -> tuple[int, NDArray[np.bool_]]:
    """The background's colour, an index into COLOURS, and the foreground's pixels."""
    distance = np.stack([_distance_to_line(pixels, *COLOURS[c]) for c in COLOURS])
    border = np.ones((SIDE, SIDE), dtype=bool)
    border[3:-3, 3:-3] = False
    background = int(np.bincount(distance.argmin(0)[border], minlength=len(COLOURS)).argmax())
    away = distance[background]
    return background, (away > 45) & (away > distance.min(0) + 10)


def _distance_to_line(
    pixels: NDArray[np.float64], start: tuple[int, int, int], end: tuple[int, int, int]
) -> NDArray[np.float64]:
    a, b = np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
    along = np.clip((pixels - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(pixels - a - along[..., None] * (b - a), axis=-1)


def _grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    for axis in (0, 1):
        mask = np.logical_or.reduce([np.roll(mask, k, axis) for k in range(-pixels, pixels + 1)])
    return mask


def _shape_colour(
    pixels: NDArray[np.float64], foreground: NDArray[np.bool_], names: Iterable[str]
) -> str | None:
    """Which of the colours the foreground's median is nearest to."""
    inner = ~_grown(~foreground, 2)
    chosen = inner if inner.sum() >= 20 else foreground
    if not chosen.any():
        return None
    median = np.median(pixels[chosen], axis=0)
    return min(names, key=lambda c: float(np.linalg.norm(median - np.array(_solid(c)))))


@cache
def _template(shape: str, size: str) -> NDArray[np.bool_]:
    return covers(Outline(shape, SIDE / 2, SIDE / 2, RADIUS[size]))


def _best_shape(foreground: NDArray[np.bool_]) -> tuple[str, str, str, float]:
    """Shape, size, place and overlap of the template that covers the foreground best."""
    core = foreground & _grown(~_grown(~foreground, 1), 1)  # drops specks
    ys, xs = np.nonzero(core if core.any() else foreground)
    if len(ys) == 0:
        return SHAPES[0], SIZES[0], "centre", 0.0
    cy, cx = (ys.min() + ys.max() + 1) / 2, (xs.min() + xs.max() + 1) / 2
    best = (-1.0, SHAPES[0], SIZES[0])
    for shape, size in itertools.product(SHAPES, SIZES):
        template = _template(shape, size)
        ty, tx = np.nonzero(template)
        dy = round(cy - (ty.min() + ty.max() + 1) / 2)
        dx = round(cx - (tx.min() + tx.max() + 1) / 2)
        for oy, ox in itertools.product((-1, 0, 1), repeat=2):
            moved = np.roll(template, (dy + oy, dx + ox), (0, 1))
            overlap = float((moved & foreground).sum() / (moved | foreground).sum())
            best = max(best, (overlap, shape, size))
    overlap, shape, size = best
    column, row = (min(range(3), key=lambda k: abs(GRID[k] - c)) for c in (cx, cy))
    return shape, size, PLACES[3 * row + column], overlap


def _pattern(pixels: NDArray[np.float64], background: NDArray[np.bool_]) -> str:
    """Plain where the rows agree, gradient where they run along a line, else striped."""
    rows = np.array(
        [np.median(p[b], axis=0) for p, b in zip(pixels, background, strict=True) if b.sum() >= 8]
    )
    if len(rows) < 8:
        return "plain"
    y = np.linspace(-1, 1, len(rows))
    centred = rows - rows.mean(0)
    total = float((centred**2).sum())
    if total / len(rows) < 15.0**2:  # a gradient's rows deviate by 25 and more
        return "plain"
    slope = y @ centred / (y @ y)
    residual = float(((centred - y[:, None] * slope) ** 2).sum())
    return "gradient" if residual < 0.4 * total else "striped"
