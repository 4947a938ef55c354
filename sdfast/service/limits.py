"""What a service accepts, waits for, and gives up on."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import InvalidRequest

ORDERS = ("fair", "shortest")


@dataclass(frozen=True)
class Limits:
    """Bounds of a service; all of them above 0 but where 0 is said to mean something.

    queue: requests that wait at most
    queue_seconds: predicted work that waits at most, in seconds
    running: requests that share the network's calls at most; the others wait
    rows: of networks that are computed at once at most; 0 for 16 on each core, or 16 on device
        "cuda": images are two rows each where they are guided
    images, steps: of one request
    pixels: width × height of a picture that is drawn; 0 for what the bundle draws at most
    prompt: characters of a prompt, and of a negative prompt
    body: bytes of an HTTP request
    input_pixels: width × height of a picture that is given, asked before it is decoded
    memory: bytes that the worker may have, of the GPU where it draws there, by which pictures are
        refused that it could not draw; 0 for what the machine has
    deadline: seconds that a request may take, waiting included; one may ask for less
    stall: seconds that the worker may be silent while it has work; after these it is restarted. It
        is 20 usual steps at least
    drain: seconds that a service which ends gives to what it has accepted
    canary: seconds between drawings of the golden picture, by which a service knows that what it
        draws is right; 0 for once, before it is ready
    """

    queue: int = 64
    queue_seconds: float = 120.0
    running: int = 16
    rows: int = 0
    images: int = 10
    steps: int = 200
    pixels: int = 0
    prompt: int = 8000
    body: int = 32 << 20
    input_pixels: int = 16 << 20
    memory: int = 0
    deadline: float = 600.0
    stall: float = 120.0
    drain: float = 30.0
    canary: float = 300.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value, least = getattr(self, one.name), 0 if one.name in _MAY_BE_0 else 1e-3
            if not least <= value < float("inf"):
                raise InvalidRequest(
                    f"limit {one.name} is {value}; it must be a number from {least} upward"
                )


_MAY_BE_0 = ("rows", "pixels", "queue", "memory", "canary")
