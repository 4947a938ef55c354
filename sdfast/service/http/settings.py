"""How a service is reached over HTTP."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields

from ...errors import InvalidRequest

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """What is not the service's own but HTTP's.

    host, port: where it listens; port 0 for one that is free
    api_keys: any of which a caller must have, as `Authorization: Bearer KEY`, or as the password of
        Basic; without any, everybody who reaches the port may call
    cors_origins: whose pages in a browser may call; none but its own
    allowed_hosts: names that a Host header may say beside the loopback's own; "*" for any. On a
        loopback address alone: elsewhere every name is allowed where none is said here
    body_seconds: within which a request's head must have come, and then its body
    write_seconds: after which a reader who takes nothing of an answer is dropped
    heartbeat: seconds between comments in a stream of events that has nothing to say
    log_prompts: whether the log has the prompts
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    body_seconds: float = 60.0
    write_seconds: float = 60.0
    heartbeat: float = 15.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidRequest(f"port is {self.port}; it must be from 0 to 65535")
        if any(not key.strip() or not key.isascii() for key in self.api_keys):
            raise InvalidRequest("an API key is empty or not ASCII: give one that a header can say")
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, float) and not 0 < value < float("inf"):
                raise InvalidRequest(f"{one.name} is {value}; it must be a number above 0")
        if "*" in self.cors_origins:
            raise InvalidRequest(
                "cors-origin is *: say which origins, such as https://gallery.example"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False
