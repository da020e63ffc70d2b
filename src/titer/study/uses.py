"""The smallest pieces of a study: pools of text and their parts, methods, measures and stages by
name. See `spec`.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from titer.study.base import Contradiction, Strict

Name = Annotated[
    str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@=+-]*$")
]
PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+/[A-Za-z0-9_-]+$")]
"""`pool/part`: a part of a pool; two parts of one pool never share an example."""
Probability = Annotated[float, Field(gt=0, lt=1)]
Level = Annotated[float, Field(ge=1e-4, le=0.2)]
"""An error level α. Above 0.2 a claim would be meaningless."""
Share = Annotated[float, Field(ge=1e-3, le=0.5)]
"""δ: the share of attack seeds that may breach; above 0.5 a claim would be about the attacker's bad
luck.
"""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]


def no_repeats(values: Sequence[Any], field: str, what: str) -> Sequence[Any]:
    """The values, if they are distinct. Raises Contradiction."""
    seen = [v for i, v in enumerate(values) if v in values[:i]]
    if seen:
        raise Contradiction(
            f"{what} must be distinct",
            field=field,
            value=seen[0],
            expected="each once",
        )
    return values


def no_common(seeds: Iterable[int], search_seeds: Iterable[int]) -> None:
    """Raises Contradiction if a seed both searches and confirms."""
    common = sorted(set(seeds) & set(search_seeds))
    if common:
        raise Contradiction(
            "a seed is used both to search and to confirm",
            field="search_seeds",
            value=common[0],
            expected="search_seeds and seeds (confirmation) without a common one",
        )


def no_empty_or_repeated(points: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Settings field → values of a sweep or a search."""
    for name, values in points.items():
        if not values:
            raise Contradiction(
                "there is nothing to choose from",
                field=name,
                value=[],
                expected="at least one value, or no such field",
            )
        no_repeats(values, name, f"values of {name}")
    return points


def combinations(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value per name, in declared order, the last name varying fastest; one
    empty choice if there are no names.
    """
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


class Pool(Strict):
    """Text from one source, cut into disjoint parts.

    parts: name → number of examples. The source is shuffled once (seed `shuffle`) and cut in
    declared order. drop_near: pools whose near-duplicates (TF-IDF cosine above `near_threshold`)
    leave this pool before it is cut; its own name removes near-duplicates within it. respond /
    refuse: `as_given` keeps the source's answers; `content_free` writes compliance without content;
    `standard` takes refusals from a list of common ones.
    """

    source: str
    options: dict[str, Any] = {}
    parts: dict[str, Annotated[int, Field(gt=0)]] = Field(min_length=1)
    respond: Literal["as_given", "content_free"] = "as_given"
    refuse: Literal["as_given", "standard"] = "as_given"
    merge: dict[Name, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    """Domain of the study → domains of the source that it stands for; unlisted ones keep their
    names.
    """
    drop_near: tuple[str, ...] = ()
    near_threshold: Probability = 0.6
    shuffle: Seed = 0


class MethodUse(Strict):
    """A method by name with its raw settings (validated by the registry)."""

    name: str
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


_SLOT = r"^[a-z][a-z0-9_]*$"
SlotName = Annotated[str, Field(pattern=_SLOT, max_length=40)]
"""What a text is to a method: `harmful`, `harmless`, or a further slot that a method asks for."""


class TextUse(Strict):
    """Some text of a pool. examples: how many are drawn from the part, afresh for every seed; all
    if omitted. domains: only these. In YAML also just `pool/part`.
    """

    part: PartName
    examples: Annotated[int, Field(gt=0)] | None = None
    domains: tuple[str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"part": value} if isinstance(value, str) else value


_USUAL, _SHARED = ("harmful", "harmless"), ("examples", "domains")


class DataUse(Strict):
    """The text a method is given, by slot. In YAML the slots stand for themselves:

        {harmful: harm/attack, harmless: benign/train, examples: 240}

    `examples` there applies to every slot that does not say otherwise, `domains` to `harmful`.
    """

    slots: dict[SlotName, TextUse] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_slots(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "slots" in value:
            _refuse_misspelt(value["slots"])
            return value
        value = dict(value)
        shared = {k: v for k in _SHARED if (v := value.pop(k, None)) is not None}
        domains = shared.pop("domains", None)
        _refuse_misspelt(value)
        slots = {}
        for name, use in value.items():
            if use is None:
                continue
            use = {"part": use} if isinstance(use, str) else use
            use = use.model_dump(exclude_unset=True) if isinstance(use, TextUse) else use
            if isinstance(use, dict):
                use = {**shared, **use}
                if domains is not None and name == "harmful":
                    use = {"domains": domains, **use}
            slots[name] = use
        if shared and not slots:
            raise Contradiction(
                "examples without text are examples of nothing",
                field="examples",
                value=shared["examples"],
                expected="a part of a pool under `harmful`, `harmless` or another slot",
            )
        if domains is not None and "harmful" not in slots:
            raise Contradiction(
                "domains without harmful text restrict nothing",
                field="domains",
                value=domains,
                expected="a part under `harmful`, or domains given with the slot they restrict",
            )
        return {"slots": slots}

    def __bool__(self) -> bool:
        return bool(self.slots)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(use.part for use in self.slots.values())


def _refuse_misspelt(slots: Any) -> None:
    """A slot may have any name, so the text of a misspelt one would be given to nobody. Raises
    Contradiction if a name is nearly one that is known, or cannot be a name.
    """
    for name in slots if isinstance(slots, Mapping) else ():
        near = difflib.get_close_matches(str(name), (*_USUAL, *_SHARED), n=1, cutoff=0.85)
        if name in _USUAL or (not near and re.fullmatch(_SLOT, str(name))):
            continue
        raise Contradiction(
            "unknown slot",
            field=str(name),
            value=slots[name],
            expected=f"{', '.join(_USUAL)} or another slot that the method asks for (small "
            f"letters, digits and _), {' or '.join(_SHARED)}",
            remedy=f"did you mean {near[0]}?" if near else None,
        )


class MeasureUse(Strict):
    """A measure by name with its settings, on one part of a pool; no part if the measure brings its
    own items. `limit`: the first so many examples.
    """

    measure: str
    settings: dict[str, Any] = {}
    part: PartName | None = None
    limit: Annotated[int, Field(gt=0)] | None = None
    domains: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _of_a_part(self) -> MeasureUse:
        for name in ("limit", "domains"):
            if self.part is None and getattr(self, name) is not None:
                raise Contradiction(
                    f"{name} without a part restricts nothing",
                    field=name,
                    value=getattr(self, name),
                    expected="a part of a pool under `part`",
                )
        return self


class Stage(Strict):
    """A training stage done by the defender: method, text, steps. data: the study's `defense_data`
    if omitted.
    """

    method: MethodUse
    data: DataUse | None = None
    steps: Annotated[int, Field(ge=0)]


class Align(Stage):
    """The study's own alignment stage, done once before anything else."""

    data: DataUse
    seed: Seed = 0


class Service(Strict):
    """The defense of a fine-tuning service, and the defender's own text for it."""

    method: MethodUse
    data: DataUse | None = None
