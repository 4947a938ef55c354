"""Outlines of shapes: which pixels they cover, and the semantic maps made of them.

Needs NumPy and Pillow, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 128  # pixels; every scene is SIDE × SIDE

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")

# A segmentation's colours: the shape, of the scene's own, on black.
CLASSES: dict[str, tuple[int, int, int]] = {
    "circle": (255, 0, 0),
    "square": (0, 255, 0),
    "triangle": (0, 0, 255),
    "star": (255, 255, 0),
    "ring": (255, 0, 255),
    "cross": (0, 255, 255),
}


@dataclass(frozen=True)
class Outline:
    """Where a shape lies: its centre and its circumscribed circle's radius, in pixels."""

    shape: str
    x: float
    y: float
    radius: float


def segmentation(at: Outline) -> Image.Image:
    """The semantic map of a scene: pixels of the shape in its class's colour (CLASSES), all others
    black. What the demo's ControlNet reads."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[covers(at)] = CLASSES[at.shape]
    return Image.fromarray(pixels)


def covers(at: Outline) -> NDArray[np.bool_]:
    """The pixels [SIDE, SIDE] that are the shape's by more than half."""
    return coverage(at) > 0.5


def coverage(at: Outline) -> NDArray[np.float64]:
    """Coverage of each pixel by the shape, 0…1, from 4×4 samples a pixel."""
    shape, scale = at.shape, 4
    canvas = Image.new("L", (SIDE * scale, SIDE * scale))
    pen = ImageDraw.Draw(canvas)
    centre, r = (at.x * scale, at.y * scale), at.radius * scale

    def disc(size: float, fill: int) -> None:
        box = (centre[0] - size, centre[1] - size, centre[0] + size, centre[1] + size)
        pen.ellipse(box, fill=fill)

    def polygon(points: Sequence[tuple[float, float]]) -> None:
        pen.polygon([(centre[0] + r * px, centre[1] + r * py) for px, py in points], fill=255)

    if shape == "circle":
        disc(0.92 * r, 255)
    elif shape == "ring":
        disc(r, 255)
        disc(0.52 * r, 0)
    elif shape == "square":
        polygon([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
    elif shape == "triangle":
        polygon([(0.0, -0.95), (0.98, 0.75), (-0.98, 0.75)])
    elif shape == "cross":
        polygon([(-0.95, -0.32), (0.95, -0.32), (0.95, 0.32), (-0.95, 0.32)])
        polygon([(-0.32, -0.95), (0.32, -0.95), (0.32, 0.95), (-0.32, 0.95)])
    elif shape == "star":
        reach = (1.08, 0.45)
        polygon(
            [
                (
                    reach[k % 2] * math.sin(k * math.pi / 5),
                    -reach[k % 2] * math.cos(k * math.pi / 5),
                )
                for k in range(10)
            ]
        )
    else:
        raise ValueError(f"unknown shape {shape!r}: one of {', '.join(SHAPES)}")
    return np.asarray(canvas.reduce(scale), dtype=np.float64) / 255
