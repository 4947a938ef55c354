"""Every error a user can meet.

Each message says what was wrong, what is allowed, and what to do. The command line prints the
message without a traceback and exits with 2 (1 for a VerificationError); the service maps it to
a 4xx with the same text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SdfastError(Exception):
    """A mistake the user can mend; the message is written for them."""


class UnknownSampler(SdfastError, ValueError):
    """No sampler has that name or alias."""


class UnknownSchedule(SdfastError, ValueError):
    """No sigma schedule has that name."""


class InvalidRequest(SdfastError, ValueError):
    """A parameter of a generation is outside its range."""


class CannotReplay(SdfastError):
    """A picture cannot be drawn again here: what drew it, or what it was drawn from, is missing."""


class InvalidProgram(SdfastError, ValueError):
    """A program, read from JSON, that no device could run."""


class BundleError(SdfastError):
    """A bundle is missing, damaged, or of a schema this version does not read."""


class CheckpointError(SdfastError):
    """A checkpoint is missing a part or has a form the exporter does not take."""


class LoraError(SdfastError, ValueError):
    """A LoRA is missing, damaged, made for another model, or of a kind that is not implemented."""


class RecipeError(SdfastError):
    """A recipe is missing, damaged, or made for another kind of checkpoint."""


class VerificationError(SdfastError):
    """A network as exported computes other than the checkpoint's own: nobody's mistake but ours."""


class EngineRefused(VerificationError):
    """A compiled engine computes other than the portable path, or is slower than it."""


class BackendUnavailable(SdfastError):
    """A backend or device cannot be used on this machine."""


class EngineError(SdfastError):
    """An engine failed while it ran, mostly for want of memory."""


class OutputError(SdfastError):
    """A result could not be written where it was asked for."""


class StoreWarning(UserWarning):
    """The store is damaged or cannot be written: nothing is lost but time."""


class Cancelled(SdfastError):
    """The callback asked the run to stop."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `allowed`, or an empty string."""
    close = difflib.get_close_matches(name.lower(), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
