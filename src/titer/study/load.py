"""Reading a study from YAML, a dictionary, or the name of a built-in one."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from titer.errors import StudyError, UnknownNameError
from titer.study.base import Contradiction
from titer.study.conditions import FlopsBudget
from titer.study.spec import Candidate, Study


class _UniqueLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error instead of the last one silently winning."""

    # At composing, not constructing: there, what `<<` merges in is among the keys already, and may
    # be overridden.
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise StudyError(
                    "a key is given twice in the study",
                    field=key.value,
                    value=f"lines {seen[key.value]} and {line}",
                    expected="each key once",
                )
            seen[key.value] = line
        return node


# YAML 1.1 reads 1e-3 as text; researchers write learning rates so. Accept it as the number it is.
_UniqueLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def _numbers(value: Any) -> Any:
    """`"1e-3"` as the number it is, also in a dictionary that a plain YAML loader made; titer's own
    does so while reading.
    """
    if isinstance(value, Mapping):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(v) for v in value]
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


def builtin_studies() -> dict[str, str]:
    """name → YAML text of the studies shipped with titer."""
    folder = resources.files("titer.study") / "builtin"
    return {
        p.name.removesuffix(".yaml"): p.read_text("utf-8")
        for p in folder.iterdir()
        if p.name.endswith(".yaml")
    }


def load_study(source: str | Path | Mapping[str, Any] | Study) -> Study:
    """A study from a built-in name, a YAML file, a dictionary or a `Study` (returned as it is).

    Raises StudyError (unknown field, value out of range, contradiction) and UnknownNameError (no
    such study). Paths of models and text files inside a YAML file are taken relative to that file.
    """
    if isinstance(source, Study):
        return source
    if isinstance(source, Mapping):
        return validated(Study, _numbers(dict(source)), "study")
    if not isinstance(source, (str, Path)):
        raise StudyError(
            "this is not a study",
            field="study",
            value=_short(source),
            expected="the name of a built-in study, a YAML file, a dictionary or a Study",
        )
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            missing = isinstance(error, FileNotFoundError)
            raise StudyError(
                "the study file does not exist"
                if missing
                else f"the study cannot be read ({error.__class__.__name__})",
                field="study",
                value=str(path),
                expected="a YAML file in UTF-8",
            ) from error
        return parse_study(text, base=path.parent, where=str(path))
    builtin = builtin_studies()
    if str(source) not in builtin:
        near = difflib.get_close_matches(str(source), builtin, n=3, cutoff=0.5)
        raise UnknownNameError(
            "no built-in study and no file has this name",
            field="study",
            value=str(source),
            expected=f"a YAML file, or one of {', '.join(sorted(builtin))}",
            remedy=f"did you mean {' or '.join(near)}"
            if near
            else "`titer list studies` shows the built-in ones",
        )
    return parse_study(builtin[str(source)], base=Path("."), where=str(source))


def parse_study(text: str, *, base: Path, where: str) -> Study:
    """A study from YAML text; relative paths are resolved against `base`."""
    try:
        raw = yaml.load(text, Loader=_UniqueLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        raise StudyError(
            f"{where}{line}: not YAML ({why})",
            field="study",
            value=where,
            expected="valid YAML",
            remedy="text with a colon or a tab in it needs quotes",
        ) from error
    if not isinstance(raw, dict):
        raise StudyError(
            f"{where}: a study is a mapping of fields",
            field="study",
            value=_short(raw),
            expected="`name: …` and so on",
            remedy="start from a built-in one: `titer show quickstart`",
        )
    return validated(Study, _absolute(raw, base), where)


def _absolute(raw: Any, base: Path) -> Any:
    """Make `path:` models and the `path` option of text sources independent of the working
    directory.
    """

    def fix(text: str) -> str:
        return str((base / Path(text).expanduser()).resolve())

    def model(value: Any) -> Any:
        return resolved_model(value, base)

    raw = dict(raw)
    if "model" in raw:
        raw["model"] = model(raw["model"])
    if isinstance(raw.get("candidates"), list):
        raw["candidates"] = [
            {**c, "model": model(c["model"])} if isinstance(c, dict) and c.get("model") else c
            for c in raw["candidates"]
        ]
    if isinstance(raw.get("models"), dict):
        raw["models"] = {name: model(value) for name, value in raw["models"].items()}
    if isinstance(raw.get("plugins"), list):
        raw["plugins"] = [fix(p) if isinstance(p, str) else p for p in raw["plugins"]]
    if isinstance(raw.get("pools"), dict):
        for name, pool in raw["pools"].items():
            options = pool.get("options") if isinstance(pool, dict) else None
            if isinstance(options, dict) and isinstance(options.get("path"), str):
                raw["pools"] = {
                    **raw["pools"],
                    name: {**pool, "options": {**options, "path": fix(options["path"])}},
                }
    return raw


def resolved_model(value: Any, base: Path = Path(".")) -> Any:
    """A model reference (text or mapping) with a relative path made absolute; anything else as it
    is.
    """
    if isinstance(value, str) and not value.startswith(("tiny:", "package:", "hub:")):
        return "path:" + str((base / Path(value.removeprefix("path:")).expanduser()).resolve())
    if (
        isinstance(value, dict)
        and value.get("source") == "path"
        and isinstance(value.get("name"), str)
    ):
        return {**value, "name": str((base / Path(value["name"]).expanduser()).resolve())}
    return value


def validated(cls: type[BaseModel], raw: Any, where: str) -> Any:
    """`cls(**raw)`, with pydantic's complaints told as one StudyError: what is wrong, in which
    field, and what would be right.
    """
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise _told(error, cls, raw, where) from error


SHORT_FORMS: dict[type[BaseModel], tuple[str, ...]] = {
    Candidate: ("defense", "steps", "data", "seed"),
}
"""Fields that can be written although the model does not have them: they stand for others."""

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


def _told(error: ValidationError, cls: type[BaseModel], raw: Any, where: str) -> StudyError:
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
            value=_short(cause.value),
            expected=cause.expected,
            remedy=cause.remedy,
        )
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, first["loc"][:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        return StudyError(
            f"{where}: unknown field{more}",
            field=field,
            value=_short(first["input"]),
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
        f"{where}: a value is not what it should be{more}",
        field=field,
        value=_short(first["input"]),
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
    return complaint["msg"].removeprefix("Value error, ").removeprefix("Input should be ")


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
    """Does pydantic add this for a kind of value?"""
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


def _short(value: Any, length: int = 120) -> Any:
    text = repr(value)
    return value if len(text) <= length else text[: length - 1] + "…"
