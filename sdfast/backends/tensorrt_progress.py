"""How far TensorRT's builder is: it tells of phases within phases, from threads of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

from .tensorrt_library import library

Tell = Callable[[str, float], None]
"""tell(doing, part): what the builder is at, and how much of the whole is done, 0 … 1. What it
raises stops the build."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The phases that are open, by name. failure: what `tell` raised"""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._lock = tell, Lock()
        self._open: dict[str, _Phase] = {}
        self.failure: BaseException | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._open[name] = _Phase(parent, max(steps, 1))
            self._say(name)

    def step(self, name: str, step: int) -> bool:
        """Whether to go on."""
        with self._lock:
            if name in self._open:
                self._open[name].done = step + 1
                self._say(name)
            return self.failure is None

    def finish(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)

    def _say(self, name: str) -> None:
        outermost = name
        while (parent := self._open[outermost].parent) in self._open:
            outermost = str(parent)
        try:
            self._tell(name, self._part(outermost))
        except BaseException as failure:  # no exception may pass through the builder
            self.failure = self.failure or failure

    def _part(self, name: str) -> float:
        """Of a phase, with what is done of the phases within its present step."""
        phase = self._open[name]
        within = max(
            (self._part(n) for n, p in self._open.items() if p.parent == name), default=0.0
        )
        return min(1.0, (phase.done + within) / phase.steps)


def monitor(phases: Phases) -> Any:
    """Passes on what the builder tells."""
    trt = library()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
