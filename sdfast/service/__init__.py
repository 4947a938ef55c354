"""sdfast as a service: many requests at once, side by side, in a process that survives its engines.

    async with Service(["demo"]) as service:
        job = await service.submit(Request("a small red circle on a blue background"))
        outcome = await job.result()

`sdfast.service.http` puts HTTP around it.
"""

from .gate import Model
from .jobs import Job, Outcome, Progress
from .limits import Limits
from .refusals import Refusal
from .service import Service

__all__ = ["Job", "Limits", "Model", "Outcome", "Progress", "Refusal", "Service"]
