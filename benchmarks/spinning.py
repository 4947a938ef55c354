"""What it gains that ONNX Runtime's threads stop spinning when a network is done.

    python benchmarks/spinning.py [--runs 15] [--json FILE]

The networks of one picture (text encoder, 20 U-Net calls with guidance, decoder), each in a session
of its own, with ONNX Runtime's default, with the spinning stopped after each run (what sdfast
sets), and without spinning. The three take turns, so that a drifting machine treats them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime
from machine import described

from sdfast import store

SETTINGS = {
    "default": {},
    "stopped after each run": {"session.force_spinning_stop": "1"},
    "no spinning": {"session.intra_op.allow_spinning": "0"},
}
CALLS = {"text_encoder": 1, "unet": 20, "vae_decoder": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    demo = store.load("demo")
    rng = np.random.default_rng(0)
    context = demo.manifest.context
    inputs = {
        "text_encoder": {"tokens": np.ones((2, context.tokens), np.int32)},
        "unet": {
            "latent": rng.standard_normal((2, 4, 16, 16), np.float32),
            "timestep": np.full(2, 500, np.float32),
            "context": rng.standard_normal((2, context.tokens, context.width), np.float32),
        },
        "vae_decoder": {"latent": rng.standard_normal((1, 4, 16, 16), np.float32)},
    }

    def picture(entries: dict[str, str]) -> float:
        sessions = {}
        for name in CALLS:
            options = onnxruntime.SessionOptions()
            for key, value in entries.items():
                options.add_session_config_entry(key, value)
            file = str(demo.network(name))
            sessions[name] = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        times = []
        for _ in range(5):
            started = perf_counter()
            for name, calls in CALLS.items():
                for _ in range(calls):
                    sessions[name].run(None, inputs[name])
            times.append(perf_counter() - started)
        return statistics.median(times[1:])

    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(given.runs):
        for name, entries in SETTINGS.items():
            seconds[name].append(picture(entries))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    found = {
        **described("python benchmarks/spinning.py", "onnxruntime"),
        "runs": given.runs,
        "median_seconds": medians,
        "ratio_to_default": {name: m / medians["default"] for name, m in medians.items()},
    }
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
