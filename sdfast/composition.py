"""What is said at which step: a prompt and a negative prompt as the texts to encode, each once, and
which of them guide each step.

Composed prompts (AND; arXiv:2206.01714) guide together: with U the denoised of the negative prompt
and Dᵢ those of the parts, of weights wᵢ,

    D = U + scale · Σ wᵢ (Dᵢ − U)
"""

from __future__ import annotations

from dataclasses import dataclass

from . import prompts
from .errors import InvalidRequest
from .prompts import EMPTY, Lora, Text

LONGEST = 20_000  # characters of a prompt
MOST = 64  # texts: each is encoded, and kept with its keys and values while a request runs


@dataclass(frozen=True)
class Script:
    """What a request says.

    texts: to encode, which all differ; None stands for zeros
    prompts: at each step, the text of each part, as an index of `texts`
    weights: of the parts
    negatives: at each step the text to guide away from; None where none is asked for
    loras: that the prompt names
    """

    texts: tuple[Text | None, ...]
    prompts: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    negatives: tuple[int, ...] | None
    loras: tuple[Lora, ...]

    @property
    def constant(self) -> bool:
        """Whether all steps are told the same."""
        return len({self.rows(step) for step in range(len(self.prompts))}) == 1

    @property
    def count(self) -> int:
        """Rows of a step."""
        return len(self.rows(0))

    @property
    def composed(self) -> bool:
        """Whether parts are weighted and added up."""
        return self.weights != (1.0,)

    @property
    def plain(self) -> bool:
        """Whether it is one prompt, as it stands, at all steps."""
        return self.constant and self.weights == (1.0,)

    def rows(self, step: int) -> tuple[int, ...]:
        """The texts of that step, counted from 0, in the order of the network's rows: the negative
        one first, where there is one, then the parts."""
        negative = () if self.negatives is None else (self.negatives[step],)
        return negative + self.prompts[step]


def script(
    prompt: str, negative_prompt: str | None, steps: int, zeros_for_empty: bool = False
) -> Script:
    """Reads both for a run of `steps` steps.

    negative_prompt: None where nothing is guided away from
    zeros_for_empty: whether a negative prompt that says nothing is zeros and not the empty text
    Raises InvalidRequest for what cannot be read, with its column, and for what is too much.
    """
    said = _read(prompt, "prompt", composed=True)
    away = None
    if negative_prompt is not None:
        away = _read(negative_prompt, "negative prompt", composed=False)
        for lora in away.loras:
            raise InvalidRequest(
                f"the negative prompt, column {lora.column}: a LoRA changes the networks and is no "
                "word to guide away from: name it in the prompt"
            )
    known: dict[Text | None, int] = {}

    def index(text: Text | None) -> int:
        found = known.setdefault(text, len(known))
        if len(known) > MOST:
            raise InvalidRequest(
                f"the prompts say more than {MOST} different things over {steps} steps; {MOST} are "
                "allowed: let fewer words take turns"
            )
        return found

    def negative(step: int) -> int:
        assert away is not None
        text = away.parts[0].at(step, steps)
        return index(None if zeros_for_empty and text == EMPTY else text)

    numbers = range(1, steps + 1)
    changing = said.changes or (away is not None and away.changes)
    told = numbers if changing else numbers[:1]
    parts = [tuple(index(part.at(step, steps)) for part in said.parts) for step in told]
    negatives = None if away is None else [negative(step) for step in told]
    times = 1 if changing else steps
    return Script(
        texts=tuple(known),
        prompts=tuple(parts * times),
        weights=tuple(part.weight for part in said.parts),
        negatives=None if negatives is None else tuple(negatives * times),
        loras=said.loras,
    )


def _read(text: str, name: str, *, composed: bool) -> prompts.Prompt:
    if len(text) > LONGEST:
        raise InvalidRequest(
            f"the {name} has {len(text)} characters; {LONGEST} are allowed: shorten it"
        )
    return prompts.parse(text, name, composed=composed)
