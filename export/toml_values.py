"""A TOML file value by value: every error names the file, the key and what is allowed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError, UnknownSampler, UnknownSchedule, nearest
from ..ranges import Allowed, Choice


@dataclass(frozen=True)
class Value:
    """What a file has at a key, as "profiles.batch"; the key "" is all of it."""

    file: Path
    key: str
    value: Any

    def wrong(self, problem: str) -> RecipeError:
        where = f"{self.file}: {self.key}" if self.key else f"{self.file}"
        return RecipeError(f"{where} {problem}")

    def entries(
        self, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, Value]:
        """The table's, which must be all of `required` and may be those of `optional`."""
        allowed = (*required, *optional)
        if not isinstance(self.value, dict):
            raise self.wrong(f"is {self.value!r}; it must be a table of {', '.join(allowed)}")
        prefix = f"{self.key}." if self.key else ""
        for key in self.value:
            if key not in allowed:
                raise self.wrong(
                    f"has the unknown key {prefix}{key}{nearest(key, allowed)}; known: "
                    + ", ".join(f"{prefix}{known}" for known in allowed)
                )
        for key in required:
            if key not in self.value:
                raise self.wrong(f"lacks the key {prefix}{key}")
        return {k: Value(self.file, f"{prefix}{k}", v) for k, v in self.value.items()}

    def within(self, allowed: Allowed) -> Any:
        """The value, which must be one of those."""
        if self.value not in allowed:
            close = ""
            if isinstance(allowed, Choice):
                close = nearest(str(self.value), allowed.words)
            raise self.wrong(f"is {self.value!r}{close}; it must be {str(allowed).lower()}")
        return self.value

    def text(self) -> str:
        """The value, which must be words."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.wrong(f"is {self.value!r}; it must be text in quotes")
        return self.value

    def known(self, get: Callable[[str], str]) -> str:
        """The name that `get` finds for the value."""
        try:
            return get(self.text())
        except (UnknownSampler, UnknownSchedule) as error:
            raise self.wrong(f"is not known: {error}") from error
