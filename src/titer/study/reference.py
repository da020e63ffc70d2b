"""How a study names a model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from titer.study.base import Strict

Source = Literal["tiny", "package", "path", "hub"]
Task = Literal["causal", "embedding"]


class ModelRef(Strict):
    """A model to be loaded. In YAML also as one string: `tiny:aligned`,
    `package:smollm2-135m-instruct`, `hub:org/name`, `path:./dir`; a string without a prefix is a
    path.

    source: `tiny` (shipped with titer; name = base | aligned | untaught), `package` (weights
    carried by a registry package; name = a row of titer.assets.packages), `path` (a local directory
    in transformers' layout), `hub`. revision: a hub commit or tag. trust_remote_code: off unless
    the study says so. task: `causal`, a language model; `embedding`, an encoder that a method reads
    as a further model.
    """

    source: Source
    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    task: Task = "causal"

    LATER = frozenset({"task"})

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, str):
            prefix, colon, rest = value.partition(":")
            if colon and prefix in ("tiny", "package", "path", "hub"):
                return {"source": prefix, "name": rest}
            return {"source": "path", "name": value}
        return value

    def __str__(self) -> str:
        return f"{self.source}:{self.name}" + (f"@{self.revision}" if self.revision else "")
