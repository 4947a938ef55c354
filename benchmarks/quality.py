"""What precision and step caching cost in quality: prompt accuracy of the demo model.

    sdfast export export/demo/checkpoint INT8 --recipe demo --backend openvino --precision int8
    python benchmarks/quality.py --int8 INT8 [--prompts 100] [--samplers euler,…] [--json FILE]

Captions that training held out, with a seed each, are drawn in 20 steps of each sampler by OpenVINO
in float32, in bfloat16, in int8, and cached at the interval `auto`; the reader of scenes says
which of each caption's attributes (shape, colour, size, background, pattern, place) it shows.
Quoted are the percentage that is right, and the distance (root mean square, in levels of 255,
median over pictures) to the same picture in float32.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from machine import described

import sdfast
from sdfast.export.demo import scenes

SAMPLERS = "euler,euler_ancestral,heun,ddim,dpmpp_2m,dpmpp_2m_sde,dpmpp_3m_sde,uni_pc,lcm"
STEPS = 20


def cases(count: int) -> list[tuple[str, Any]]:
    """Captions and their scenes."""
    source = random.Random(2024)
    drawn = [scenes.sample(source, held_out=True) for _ in range(count)]
    return [(scenes.caption(scene, source), scene) for scene in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--int8", type=Path, required=True, help="the demo model's int8 bundle")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--samplers", default=SAMPLERS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    half = sdfast.load("demo", "openvino")
    eight = sdfast.load(given.int8, "openvino")
    variants: dict[str, tuple[sdfast.Pipeline, int | str]] = {
        "fp32": (sdfast.load("demo", "openvino", precision="fp32"), 1),
        half.precision: (half, 1),
        "int8": (eight, 1),
        f"{half.precision}, cached": (half, "auto"),
        "int8, cached": (eight, "auto"),
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for sampler in given.samplers.split(","):
        exact: list[Any] = []
        for name, (pipe, cache) in variants.items():
            right: list[bool] = []
            apart: list[float] = []
            for k, (caption, scene) in enumerate(cases(given.prompts)):
                request = {"seed": k, "steps": STEPS, "sampler": sampler, "cache": cache}
                image = pipe(caption, **request).images[0]
                right += scenes.read(image).agrees(scene).values()
                pixels = np.asarray(image, float)
                exact += [pixels] if name == "fp32" else []
                apart.append(float(np.sqrt(np.mean((pixels - exact[k]) ** 2))))
            found.setdefault(sampler, {})[name] = {
                "accuracy": round(100 * statistics.mean(right), 2),
                "levels_apart": round(statistics.median(apart), 2),
            }
        shown = (
            f"{n} {v['accuracy']:.2f} ({v['levels_apart']})" for n, v in found[sampler].items()
        )
        print(f"{sampler:18}", " · ".join(shown), flush=True)
    command = f"python benchmarks/quality.py --int8 INT8 --prompts {given.prompts}"
    record = {**described(command, "openvino"), "steps": STEPS}
    if given.json:
        given.json.write_text(json.dumps({**record, "samplers": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
