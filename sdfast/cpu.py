"""This machine's CPU."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd")


def cores() -> int:
    """The cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def model() -> str:
    """Its name."""
    return _fields().get("model name", platform.processor() or platform.machine())


def features() -> tuple[str, ...]:
    """Those of FEATURES that it has; none where nobody knows."""
    fields = _fields()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return tuple(feature for feature in FEATURES if feature in flags)


@cache
def _fields() -> dict[str, str]:
    """What Linux says of the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in reversed(lines) if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
