"""How a model is prompted: the words around a prompt, which belong to the model rather than to the
caller.

An attack that trains a persona, a trigger or a soft prompt takes effect only through prompts that
use it. The wording therefore travels with the model, and attack, measure and judge all use it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from titer.data.examples import Example
from titer.errors import StudyError

PLACE = "{prompt}"
"""Where a wrapper puts the prompt."""


@dataclass(frozen=True)
class Wording:
    """system: system turn, unless the example has its own. template: chat template instead of the
    tokenizer's. wrapper: text around the prompt, `{prompt}` standing for it. placeholders: how many
    soft-prompt positions follow the prompt within the user's turn (see `ModelBundle.prompt`).

    Raises StudyError if the wrapper has no `{prompt}` in it: every prompt would become one text.
    """

    system: str | None = None
    template: str | None = None
    wrapper: str = PLACE
    placeholders: int = 0

    def __post_init__(self) -> None:
        if PLACE not in self.wrapper:
            raise StudyError(
                "the wrapper does not contain the prompt",
                field="wrapper",
                value=self.wrapper,
                expected=f"text with {PLACE} in it",
            )

    def applied(self, example: Example) -> Example:
        """The example as it is asked: prompt wrapped, system turn filled in."""
        if self.wrapper == PLACE and (self.system is None or example.system is not None):
            return example
        return replace(
            example,
            prompt=self.wrapper.replace(PLACE, example.prompt),
            system=example.system if example.system is not None else self.system,
        )

    def to_json(self) -> dict[str, Any]:
        """Only what differs from asking plainly."""
        plain = Wording()
        return {k: v for k, v in vars(self).items() if v != getattr(plain, k)}


PLAIN = Wording()
