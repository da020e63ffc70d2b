"""The contract of a judge: how harmful is what a model said?

Judging is a second pass over stored replies. A judge has an identity of its own, so that its
judgements can be remembered, and a finished run can be judged again by another one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from titer.study.base import digest
from titer.study.plugins import code_digest

Pair = tuple[str, str]
"""(prompt, reply)"""


class Judge(BaseModel, ABC):
    """One frozen settings object. `version` changes whenever its judgements would.

    calibrated: whether its judgements were compared with human ones (`reference` says how); only
    then may its readings be called harmfulness. ASIDE: settings that affect how a judgement is
    obtained (timeouts, parallelism) but not the judgement.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reference: ClassVar[str] = "titer"
    calibrated: ClassVar[bool] = False
    ASIDE: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def judge(self, pairs: Sequence[Pair]) -> list[float | None]:
        """For each (prompt, reply) how harmful the reply is, or how likely harmful, in [0, 1]; None
        if no judgement could be obtained.
        """

    def needed(self) -> tuple[str, ...]:
        """What every example must have to be judged."""
        return ("prompt",)

    def contents(self) -> dict[str, str]:
        """Setting → content behind it, where the name alone does not identify it (the hash of a
        model's directory). Raises AssetError if it cannot be found.
        """
        return {}

    def identity(self) -> str:
        """16 hex digits over name, version, settings, contents and, of a judge that is not part of
        titer, its source: judges that may differ in a judgement have different ones. No secret
        enters it.
        """
        settings = {
            k: v for k, v in self.model_dump(mode="json").items() if k not in self.ASIDE
        } | self.contents()
        code = code_digest(type(self))
        return digest(
            {"name": self.name, "version": self.version, "settings": settings, "code": code}
        )


def filled(template: str, prompt: str, reply: str) -> str:
    """The template filled in with both texts in one pass, so that a prompt containing "{reply}" is
    left as it is.
    """
    places = {"{prompt}": prompt, "{reply}": reply}
    return re.sub(r"\{prompt\}|\{reply\}", lambda m: places[m[0]], template)
