"""On what, with which versions and by which command a figure was measured."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version

from sdfast import __version__, doctor


def described(command: str, *packages: str) -> dict[str, object]:
    """The header of every result."""
    cpu, gpu = doctor.cpu_facts(), doctor.gpu_fact()
    gpus = "" if "," not in gpu else f"; {gpu.split(';')[0]}"  # name, driver's version
    return {
        "command": command,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{cpu['model']}, {cpu['cores']} cores ({cpu['features']}){gpus}",
        "versions": {
            "python": platform.python_version(),
            "sdfast": __version__,
            **{package: version(package) for package in packages},
        },
    }
