"""What an export is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RecipeError
from . import recipes
from .recipes import Recipe

if TYPE_CHECKING:
    from .components import Checkpoint

Progress = Callable[[str, int, int], None]
"""progress(what is being done, stages done, stages in all)."""


def silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Settings:
    """Everything that `sdfast.export.export` takes but the two places; its docstring says what each
    is. recipe: None for that of the checkpoint's kind. Raises RecipeError for unknown words and for
    settings that contradict each other."""

    recipe: Recipe | None = None
    backend: str = "onnxruntime"
    revision: str | None = None
    family: str | None = None
    prediction: str | None = None
    vae: Path | None = None
    preview: Path | None = None
    tokenizer: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    embeddings: tuple[Path, ...] = ()
    precision: str | None = None
    link: bool = False
    graph_from: Path | None = None
    allow_pickle: bool = False
    overwrite: bool = False
    progress: Progress = silent

    def __post_init__(self) -> None:
        recipes.check_backend(self.backend)
        if self.precision is not None:
            recipes.check_precision(self.precision, self.backend)
        if self.graph_from is not None and (self.recipe or self.precision):
            raise RecipeError(
                "--graph-from brings the recipe and the precision that its graphs were exported "
                "with: leave --recipe and --precision out"
            )

    def recipe_for(self, checkpoint: Checkpoint) -> Recipe:
        """The recipe to export it by. Raises RecipeError where that is for another kind."""
        recipe = self.recipe or recipes.for_checkpoint(checkpoint, self.backend)
        recipes.require_fit(recipe, checkpoint)
        if self.precision is None:
            return recipe
        return recipes.at_precision(recipe, self.precision, self.backend)
