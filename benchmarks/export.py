"""How long an export of a full-size checkpoint takes, and how much memory.

    python benchmarks/export.py [sd15 | sdxl …] [--keep FOLDER] [--json FILE]

A checkpoint with random weights at the published sizes (fp16) is written, exported by the command
line with everything verified, and exported again from the first bundle's graphs, as a fine-tune
would be. Memory is the largest resident size of the process, mapped files among it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from machine import described

from sdfast import bundle
from sdfast.export import random_checkpoint


def run(*command: str | Path) -> tuple[float, float]:
    """Seconds and gigabytes of `sdfast` with these arguments."""
    started = perf_counter()
    child = os.spawnv(
        os.P_NOWAIT, sys.executable, [sys.executable, "-m", "sdfast", *map(str, command)]
    )
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"sdfast {' '.join(map(str, command))} failed")
    return round(perf_counter() - started, 1), round(used.ru_maxrss / 2**20, 2)


def measured(family: str, place: Path) -> dict[str, Any]:
    """One family's figures."""
    checkpoint, first, second = (place / f"{family}{end}" for end in ("", "-bundle", "-tuned"))
    if not checkpoint.exists():
        random_checkpoint(family, checkpoint)
    for folder in (first, second):
        shutil.rmtree(folder, ignore_errors=True)
    seconds, gigabytes = run("export", checkpoint, first)
    again, gigabytes_again = run("export", checkpoint, second, "--graph-from", first)
    manifest = bundle.load(first).manifest
    shutil.rmtree(second)
    return {
        "seconds": seconds,
        "gigabytes_resident": gigabytes,
        "graph_from": {"seconds": again, "gigabytes_resident": gigabytes_again},
        "notes": manifest.notes,
        "networks": {
            name: {
                "parameters": network.parameters,
                "operators": sum(network.graph.operators.values()),
                "plain": sum(network.graph.plain.values()),
                "relative": network.difference.relative,
                "cosine": network.difference.cosine,
            }
            for name, network in manifest.networks.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=["sd15"])
    parser.add_argument("--keep", type=Path, help="a folder for checkpoints and bundles")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = given.keep or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        figures = {family: measured(family, place) for family in given.families}
    command = f"python benchmarks/export.py {' '.join(given.families)}"
    found = {**described(command, "torch", "onnxruntime"), "families": figures}
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
