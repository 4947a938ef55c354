"""What a service answers in place of pictures. Every message is for whoever asked: it names nothing
of the machine.

code: one word for programs
retry_after: seconds after which the same request may be accepted; None where asking again is of no
    use
"""

from __future__ import annotations

from ..errors import SdfastError


class Refusal(SdfastError):
    """A request that gets no pictures."""

    code = "refused"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLarge(Refusal):
    """More than the limits allow."""

    code = "too_large"


class UnknownModel(Refusal):
    """No bundle of that name is served."""

    code = "model_not_found"


class Overloaded(Refusal):
    """The queue is full, or too long for the request's deadline."""

    code = "overloaded"


class Infeasible(Refusal):
    """The request alone takes longer than its deadline."""

    code = "deadline_infeasible"


class Unavailable(Refusal):
    """The service starts, ends, or lost its worker twice over this request."""

    code = "unavailable"


class DeadlineExceeded(Refusal):
    """Its deadline passed while it waited or ran."""

    code = "deadline_exceeded"


class Stopped(Refusal):
    """Whoever asked for it cancelled it, or is gone."""

    code = "cancelled"


class OutOfMemory(Refusal):
    """A picture of that shape does not fit into memory."""

    code = "out_of_memory"


class BadOutput(Refusal):
    """What was drawn is no picture: not finite, or of one colour."""

    code = "bad_output"


class Broken(Refusal):
    """An error of the service itself, whose details are in its log."""

    code = "internal_error"
