"""Turns pydantic's errors about a study into StudyErrors that name the field as it was written."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from titer.errors import StudyError
from titer.study.base import Contradiction
from titer.study.candidate import Candidate
from titer.study.resistance import FlopsBudget

Valid = TypeVar("Valid", bound=BaseModel)


def validated(cls: type[Valid], raw: Any, where: str) -> Valid:
    """`cls(**raw)`, raising pydantic's complaints as one StudyError: what is wrong, in which field,
    and what would be right.
    """
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise _said(error, cls, raw, where) from error


SHORT_FORMS: dict[type[BaseModel], tuple[str, ...]] = {
    Candidate: ("defense", "steps", "data", "seed"),
}
"""Short forms: fields accepted in YAML that stand for fields of the model."""


_LACKING = {
    "budget": "a number of optimizer steps",
    "flops": "training FLOPs; for a budget in steps, just the number",
    "parts": "name → number of examples",
    "seeds": "a list of whole numbers",
    "steps": "a number of optimizer steps",
}
"""What a missing field should have, where its name does not say it."""


_PATTERNS = {
    "^[A-Za-z0-9][A-Za-z0-9_.@=+-]*$": "letters, digits and _ . @ = + -, the first of them a "
    "letter or digit",
    "^[A-Za-z0-9_-]+/[A-Za-z0-9_-]+$": "a part of a pool, written pool/part",
    "^[A-Za-z0-9_-]+$": "letters, digits, _ and -",
}
"""What the patterns of names mean."""


_PAGE = "see docs/studies.md, which explains every field"


def _said(error: ValidationError, cls: type[BaseModel], raw: Any, where: str) -> StudyError:
    """The complaint that matters most, as one message."""
    errors = error.errors(include_url=False)
    first = _most_telling(errors, raw)
    places = {_place(e, raw) for e in errors}
    loc = _as_written(first, raw)
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    field = ".".join(map(str, loc)) or where
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Contradiction):
        return StudyError(
            f"{where}: {cause.problem}{more}",
            field=".".join(filter(None, (*map(str, loc), cause.field))) or where,
            value=short(cause.value),
            expected=cause.expected,
            remedy=cause.remedy,
        )
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, first["loc"][:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        return StudyError(
            f"{where}: unknown field{more}",
            field=field,
            value=short(first["input"]),
            expected=f"one of {', '.join(known)}" if known else "a field this part of a study has",
            remedy=f"did you mean {near[0]}?" if near else _PAGE,
        )
    if first["type"] == "missing":
        return StudyError(
            f"{where}: a field is missing{more}",
            field=field,
            value=None,
            expected=_LACKING.get(str(loc[-1]), "a value"),
            remedy=_PAGE,
        )
    return StudyError(
        f"{where}: a value is invalid{more}",
        field=field,
        value=short(first["input"]),
        expected=" or ".join(_expected(e, cls) for e in _alternatives(first, errors, raw)),
        remedy=_PAGE,
    )


def _most_telling(errors: list[Any], raw: Any) -> Any:
    """The first complaint; but of a value that may be of several kinds, the one about the kind that
    fits best, and a misspelt field rather than the one it stands for.
    """
    first = errors[0]
    if any(_is_kind(part) for part in first["loc"]):
        place = _place(first, raw)
        first = max((e for e in errors if _place(e, raw) == place), key=lambda e: len(e["loc"]))
    if first["type"] == "missing":
        for other in errors:
            if other["type"] == "extra_forbidden" and other["loc"][:-1] == first["loc"][:-1]:
                return other
    return first


def _alternatives(first: Any, errors: list[Any], raw: Any) -> list[Any]:
    """The complaint, and those about the other kinds that the same value may be of."""
    if not any(_is_kind(part) for part in first["loc"]):
        return [first]
    place, depth = _place(first, raw), len(first["loc"])
    return [e for e in errors if _place(e, raw) == place and len(e["loc"]) == depth]


def _expected(complaint: Any, cls: type[BaseModel]) -> str:
    """What a value should be, in words."""
    kind, context = complaint["type"], complaint.get("ctx", {})
    if kind == "model_type":
        known = _fields_at(cls, complaint["loc"])
        return f"a mapping with the fields {', '.join(known)}" if known else "a mapping"
    if kind == "string_pattern_mismatch" and context.get("pattern") in _PATTERNS:
        return _PATTERNS[context["pattern"]]
    if kind in ("tuple_type", "list_type"):
        return "a list"
    if kind in ("int_type", "int_parsing", "int_from_float"):
        return "a whole number"
    if kind in ("float_type", "float_parsing"):
        return "a number"
    return str(complaint["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")


def _as_written(complaint: Any, raw: Any) -> list[int | str]:
    """Where in the study, as its author wrote it, a complaint belongs: without what pydantic adds
    for kinds of values and what a short form stands for.
    """
    return _written(complaint["loc"], raw, complaint["type"] == "missing")


def _place(complaint: Any, raw: Any) -> tuple[int | str, ...]:
    """The same, up to a value that may be of several kinds."""
    loc = tuple(itertools.takewhile(lambda part: not _is_kind(part), complaint["loc"]))
    return tuple(_written(loc, raw, complaint["type"] == "missing"))


def _is_kind(part: int | str) -> bool:
    """Whether pydantic added this element for a variant of a union."""
    return isinstance(part, str) and (
        part.startswith(("literal[", "tuple[", "function-", "constrained-"))
        or part == FlopsBudget.__name__
    )


def _written(loc: Iterable[int | str], raw: Any, missing: bool) -> list[int | str]:
    found: list[int | str] = []
    parts, here, outer = list(loc), raw, None
    while parts:
        part = parts.pop(0)
        if isinstance(here, Mapping) and part in here:
            found.append(part)
            here, outer = here[part], here
        elif isinstance(here, (list, tuple)) and isinstance(part, int):
            found.append(part)
            here, outer = (here[part] if part < len(here) else None), here
        elif isinstance(here, Mapping) and part == "stages" and "defense" in here:
            parts = ["defense" if p == "method" else p for p in parts[1:]]
        elif isinstance(here, Mapping) and part == "seeds" and "seed" in here:
            found.append("seed")
            parts = []
        elif part in ("examples", "domains") and isinstance(outer, Mapping) and part in outer:
            found[-1] = part  # given once for all slots
        elif missing and not parts:
            found.append(part)
    return found


def _fields_at(cls: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    """Names of the fields that may be written in the part of a study that `loc` leads to."""
    here: type[BaseModel] | None = cls
    parts = iter(p for p in loc if not isinstance(p, int))
    for part in parts:
        if here is None:
            return []
        if part not in here.model_fields:  # a kind of value
            continue
        annotation = here.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            next(parts, None)  # the key, which is no field
        here = next((a for a in _parts_of(annotation) if _has_fields(a)), None)
    return [*here.model_fields, *SHORT_FORMS.get(here, ())] if here else []


def _has_fields(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _parts_of(annotation: Any) -> list[Any]:
    """The annotation and every type inside it."""
    return [annotation, *(inner for a in get_args(annotation) for inner in _parts_of(a))]


def short(value: Any, length: int = 120) -> Any:
    text = repr(value)
    return value if len(text) <= length else text[: length - 1] + "…"
