"""What a measure asks of a model. Measures that ask the same of the same items share the answer.

Every request is answered by `titer.measures.ask.ask` with plain-JSON transcripts, so that a run can
be scored again without its model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from titer.data.examples import Example
from titer.data.wording import PLACE
from titer.errors import StudyError

Transcript = dict[str, Any]
"""What a model did with one example: `key` (the example's) and whatever the request is about. Plain
JSON; None stands for a number that is not finite.
"""


def checked_wrap(template: str) -> str:
    """The template. Raises StudyError if it has no `{prompt}`: all prompts would be one text."""
    if PLACE not in template:
        raise StudyError(
            "the template does not contain the prompt",
            field="wrap",
            value=template,
            expected=f"text with {PLACE} in it",
        )
    return template


Wrap = Annotated[str, AfterValidator(checked_wrap)]
"""Type of a `wrap` setting: a template the prompt is put into (attacks by prompt alone)."""


def wrapped(example: Example, template: str) -> Example:
    """The example with its prompt put into a template; its other texts stay as they are."""
    if template == PLACE:
        return example
    return replace(example, prompt=template.replace(PLACE, example.prompt))


class _Wrapping:
    """A request about prompts. Raises StudyError if its `wrap` has no `{prompt}` in it."""

    wrap: str

    def __post_init__(self) -> None:
        checked_wrap(self.wrap)


@dataclass(frozen=True)
class Generate(_Wrapping):
    """The greedy reply to each prompt, of at most `max_new_tokens` tokens.

    Transcript: key; prompt, wrapped as it was asked; reply, None if the model's numbers are not
    finite.
    """

    max_new_tokens: int
    wrap: str = PLACE

    def needed(self) -> tuple[str, ...]:
        """What every example must have."""
        return ("prompt",)


@dataclass(frozen=True)
class Score(_Wrapping):
    """How likely a known answer is, token by token, end of turn included.

    Transcript: key; logprobs, log p of each answer token given all before it; matched, whether it
    is the likeliest one there. For `choices`: key; answer, the index of the right one; options, one
    {logprobs, matched} each.
    """

    answers: Literal["response", "refusal", "choices"]
    wrap: str = PLACE

    def needed(self) -> tuple[str, ...]:
        """What every example must have."""
        return (
            ("prompt", "choices", "answer")
            if self.answers == "choices"
            else (
                "prompt",
                self.answers,
            )
        )


@dataclass(frozen=True)
class Read:
    """How likely running text is, token by token. tokens: how many of each document are read.

    Transcript: key; logprobs and matched as in `Score`, for every token but the first.
    """

    tokens: int

    def needed(self) -> tuple[str, ...]:
        """What every example must have."""
        return ("text",)


@dataclass(frozen=True)
class Openings(_Wrapping):
    """How likely a reply is to begin with each of some texts.

    Transcript: key; openings, the total log p of each text after the prompt; tokens, how many
    tokens each has.
    """

    texts: tuple[str, ...]
    wrap: str = PLACE

    def needed(self) -> tuple[str, ...]:
        """What every example must have."""
        return ("prompt",)


@dataclass(frozen=True)
class Own:
    """The measure runs the model itself (`Measure.collect`), e.g. a task of another harness."""

    def needed(self) -> tuple[str, ...]:
        """What every example must have."""
        return ()


Request = Generate | Score | Read | Openings | Own
