"""On what, with which versions and by which command a figure was measured."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version

from sdfast import __version__, doctor


def described(command: str, *packages: str) -> dict[str, object]:
    """The header of every result."""
    cpu = doctor.examine()["CPU"]
    return {
        "command": command,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{cpu['model']}, {cpu['cores']} cores ({cpu['features']})",
        "versions": {
            "python": platform.python_version(),
            "sdfast": __version__,
            **{package: version(package) for package in packages},
        },
    }
