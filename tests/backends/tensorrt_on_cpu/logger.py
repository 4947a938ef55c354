"""Where every part tells what went wrong, and what goes wrong on purpose."""

from __future__ import annotations

from enum import IntEnum

faults: set[str] = set()
"""Of "wrong", "infinite", "slow", "failing", "unbuildable" and "fused": all weights of a type are
refitted together."""


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


def error(logger: ILogger, text: str) -> None:
    logger.log(ILogger.Severity.ERROR, text)
