"""Reading a study from YAML, a dictionary, or the name of a built-in one."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from titer.errors import StudyError, UnknownNameError
from titer.study.base import Contradiction
from titer.study.spec import Study


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
                    remedy="remove one of the two",
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
            "this is no study",
            field="study",
            value=_short(source),
            expected="the name of a built-in study, a YAML file, a dictionary or a Study",
            remedy="give one of them",
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
                remedy="check the path",
            ) from error
        return parse_study(text, base=path.parent, where=str(path))
    builtin = builtin_studies()
    if str(source) not in builtin:
        near = difflib.get_close_matches(str(source), builtin, n=3, cutoff=0.5)
        raise UnknownNameError(
            "no built-in study has this name, and no file",
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
            remedy="mend that line; text with a colon or a tab in it needs quotes",
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
    """`cls(**raw)`, with pydantic's complaints told as one StudyError naming field, value,
    expectation and remedy.
    """
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise _told(error, cls, where) from error


def _told(error: ValidationError, cls: type[BaseModel], where: str) -> StudyError:
    """The first complaint as one message."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if (
        first["type"] == "literal_error"
    ):  # a field that may also be something else complains once for each kind
        first = max(
            (e for e in errors if e["loc"][: len(first["loc"]) - 1] == first["loc"][:-1]),
            key=_depth,
        )
    loc = [part for part in first["loc"] if not _is_kind(part)]
    others = len({_outer(e["loc"]) for e in errors} - {_outer(first["loc"])})
    more = f" (and {others} more)" if others else ""
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Contradiction):
        field = ".".join(filter(None, (*map(str, loc), cause.field))) or where
        return StudyError(
            f"{where}: {cause.problem}{more}",
            field=field,
            value=_short(cause.value),
            expected=cause.expected,
            remedy=cause.remedy,
        )
    field = ".".join(map(str, loc)) or where
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        return StudyError(
            f"{where}: unknown field{more}",
            field=field,
            value=_short(first["input"]),
            expected=f"one of {', '.join(known)}" if known else "a field this part of a study has",
            remedy=(f"did you mean {near[0]}? " if near else "correct the spelling, or remove it; ")
            + "docs/studies.md explains every field",
        )
    if first["type"] == "missing":
        return StudyError(
            f"{where}: a field is missing{more}",
            field=field,
            value=None,
            expected="a value",
            remedy="add it; docs/studies.md explains every field",
        )
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return StudyError(
        f"{where}: a value is not what it should be{more}",
        field=field,
        value=_short(first["input"]),
        expected=expected,
        remedy="correct it; docs/studies.md explains every field",
    )


def _depth(complaint: Any) -> int:
    return len(complaint["loc"])


def _outer(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The place in the study, without what pydantic adds for the kinds a value might have been."""
    return tuple(itertools.takewhile(lambda part: not _is_kind(part), loc))


def _is_kind(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith(("literal[", "tuple[", "function-"))


def _fields_at(cls: type[BaseModel], loc: list[int | str]) -> list[str]:
    """Names of the fields of the part of a study that `loc` leads to."""
    here: type[BaseModel] | None = cls
    parts = iter(p for p in loc if not isinstance(p, int))
    for part in parts:
        if here is None:
            return []
        annotation = here.model_fields[str(part)].annotation
        if get_origin(annotation) is dict:
            next(parts, None)  # the key, which is no field
        here = next((a for a in _parts_of(annotation) if _has_fields(a)), None)
    return list(here.model_fields) if here else []


def _has_fields(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _parts_of(annotation: Any) -> list[Any]:
    """The annotation and every type inside it."""
    return [annotation, *(inner for a in get_args(annotation) for inner in _parts_of(a))]


def _short(value: Any, length: int = 120) -> Any:
    text = repr(value)
    return value if len(text) <= length else text[: length - 1] + "…"
