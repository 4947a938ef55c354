"""A bundle with LoRA and without: engines, plans and conditions of each set of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from . import prompts
from .conditioning import Conditions, TextEncoder, load_tokenizer
from .errors import InvalidRequest, LoraError
from .opened import Opened
from .plans import Idle, Plans

if TYPE_CHECKING:  # who uses none does not load NumPy for it
    from . import loras

KEPT = 2  # sets of LoRA whose engines stay open: the one that was used longest ago makes room


class Variant:
    """A bundle's networks as engines, and what requests share of them."""

    def __init__(self, opened: Opened, plans: Plans) -> None:
        self.opened, self.plans = opened, plans
        self._conditions: Idle[None, Conditions] = Idle()

    def conditions(self) -> AbstractContextManager[Conditions]:
        """For one request, until it gives them back."""
        return self._conditions.lend(None, self._made)

    def _made(self) -> Conditions:
        opened = self.opened
        inputs = opened.inputs("context_projection", "time_projection", "unet")
        hoisted = "context_projection" in opened
        projection = opened.on_the_host("context_projection") if hoisted else None
        return Conditions(self._encoders, projection, inputs, opened.bundle.context)

    @cached_property
    def _encoders(self) -> list[TextEncoder]:
        bundle, opened = self.opened.bundle, self.opened
        return [
            TextEncoder(
                opened.on_the_host(name),
                load_tokenizer(bundle.path / tokenizer.file),
                bundle.context.tokens,
            )
            for name, tokenizer in sorted(bundle.manifest.tokenizers.items())  # the second last
        ]

    def close(self) -> None:
        """Frees all of it; it opens again when it is used."""
        self._conditions.clear()
        self.__dict__.pop("_encoders", None)
        self.plans.close()
        self.opened.close()


class Variants:
    """The plain variant, and the latest ones with LoRA.

    plans: makes those of a variant's engines
    folder: where files of LoRA are looked for, beside the bundle's own; None for nowhere else
    memory: where digests of large files are kept (`checksums`)
    """

    def __init__(
        self,
        opened: Opened,
        plans: Callable[[Opened], Plans],
        folder: Path | None,
        memory: Path | None,
    ) -> None:
        self._make, self._folder, self._memory = plans, folder, memory
        self.plain = Variant(opened, plans(opened))
        self._kept: dict[loras.Key, Variant] = {}

    def get(self, named: Sequence[prompts.Lora]) -> Variant:
        """That with the LoRA which a prompt names. Raises LoraError or InvalidRequest."""
        if not named:
            return self.plain
        from . import loras

        files = [self._found(one) for one in named]
        key = loras.key(files, self._memory)
        if (variant := self._kept.pop(key, None)) is None:
            from .loras.applied import applied

            if len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept))).close()
            opened = self.plain.opened.with_loras(applied(self.plain.opened.bundle, files))
            variant = Variant(opened, self._make(opened))
        self._kept[key] = variant  # the latest is the last
        return variant

    def key(self, named: Sequence[prompts.Lora]) -> loras.Key:
        """See loras.Key. Raises LoraError or InvalidRequest."""
        if not named:
            return ()
        from . import loras

        return loras.key([self._found(one) for one in named], self._memory)

    def _found(self, named: prompts.Lora) -> loras.Lora:
        from . import loras
        from .loras.files import check_weight

        own = self.plain.opened.bundle.path / loras.FOLDER
        folders = [own] if self._folder is None else [own, self._folder]
        try:
            check_weight(named.weight)
            return loras.Lora(loras.find(named.name, folders), named.weight)
        except LoraError as error:
            raise InvalidRequest(f"the prompt, column {named.column}: {error}") from error

    def close(self) -> None:
        """Frees all of them."""
        while self._kept:
            self._kept.popitem()[1].close()
        self.plain.close()
