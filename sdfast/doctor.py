"""What is usable on this machine, and why the rest is not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from . import __version__, backends, cpu, store
from .devices import cuda


def examine() -> dict[str, dict[str, str]]:
    """Facts by heading: sdfast, CPU, backends, GPU, store."""
    return {
        "sdfast": {
            "version": __version__,
            "python": platform.python_version(),
            "bundles": ", ".join(store.names()) or "none",
        },
        "CPU": cpu_facts(),
        "backends": _backends("cpu"),
        "GPU": {"NVIDIA": gpu_fact(), **_backends("cuda")},
        "store": _store(store.home()),
    }


def cpu_facts() -> dict[str, str]:
    """Model, cores, features."""
    return {
        "model": cpu.model(),
        "cores": str(cpu.cores()),
        "features": ", ".join(cpu.features()) or "not known",
    }


def _backends(device: str) -> dict[str, str]:
    return {name: _backend(name, why) for name, why in backends.usable(device).items()}


def _backend(name: str, why_not: str | None) -> str:
    if why_not:
        return f"not usable: {why_not}"
    return f"usable, version {backends.version(name)}"


def gpu_fact() -> str:
    """Names and drivers of NVIDIA's GPUs, and whether they can be used; or that there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return "none found (no nvidia-smi)"
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi failed ({error})"
    why_not = cuda.reason_unusable()
    found = ", ".join(done.stdout.strip().splitlines())
    return f"{found}; {f'not usable: {why_not}' if why_not else 'usable'}"


def _store(home: Path) -> dict[str, str]:
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    writable = "yes" if os.access(nearest, os.W_OK) else f"no: set SDFAST_HOME ({nearest})"
    free = shutil.disk_usage(nearest).free
    return {"folder": str(home), "writable": writable, "free": f"{free / 1e9:.1f} GB"}
