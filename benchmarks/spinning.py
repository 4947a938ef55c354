"""What it gains that ONNX Runtime's threads stop spinning when a network is done.

    python benchmarks/spinning.py [--runs 15] [--json FILE]

The networks of one picture (text encoder, the projections of context and time, 20 U-Net calls with
guidance, decoder), each in a session of its own, with ONNX Runtime's default, with the spinning
stopped after each run (what sdfast sets), and without spinning. The three take turns, so that a
drifting machine treats them alike.
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
STEPS = 20
CALLS = {
    "text_encoder": 1,
    "context_projection": 1,
    "time_projection": 1,
    "unet": STEPS,
    "vae_decoder": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    demo = store.load("demo")
    rng = np.random.default_rng(0)
    context = demo.manifest.context
    unet = demo.manifest.networks["unet"].inputs
    times, keys_values = (unet[name].shape[-1] for name in ("time", "keys_values"))
    inputs = {
        "text_encoder": {"tokens": np.ones((2, context.tokens), np.int32)},
        "context_projection": {
            "context": rng.standard_normal((2, context.tokens, context.width), np.float32)
        },
        "time_projection": {"timestep": np.linspace(999, 0, 2 * STEPS, dtype=np.float32)},
        "unet": {
            "latent": rng.standard_normal((2, 4, 16, 16), np.float32),
            "time": rng.standard_normal((2, times), np.float32),
            "keys_values": rng.standard_normal((2, context.tokens, keys_values), np.float32),
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
