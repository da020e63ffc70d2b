"""Reading a study from YAML, a dictionary, or the name of a built-in one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from titer.errors import StudyError, UnknownNameError
from titer.study.spec import Study


class _UniqueLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error instead of the last one silently winning."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise StudyError("a key is given twice in the study", field=str(key), value=f"line {key_node.start_mark.line + 1}",
                                 expected="each key once", remedy="remove one of the two")  # fmt: skip
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text; researchers write learning rates so. Accept it as the number it is.
_UniqueLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    __import__("re").compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def builtin_studies() -> dict[str, str]:
    """name → YAML text of the studies shipped with titer."""
    folder = resources.files("titer.study") / "builtin"
    return {p.name.removesuffix(".yaml"): p.read_text("utf-8") for p in folder.iterdir() if p.name.endswith(".yaml")}


def load_study(source: str | Path | Mapping[str, Any] | Study) -> Study:
    """A study from a built-in name, a YAML file, a dictionary or a `Study` (returned as it is).

    Raises StudyError (unknown field, value out of range, contradiction) and UnknownNameError (no such study).
    Paths of models and text files inside a YAML file are taken relative to that file.
    """
    if isinstance(source, Study):
        return source
    if isinstance(source, Mapping):
        return validated(Study, dict(source), "study")
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"the study cannot be read ({error.__class__.__name__})", field="study", value=str(path),
                             expected="a readable YAML file", remedy="check the path") from error  # fmt: skip
        return parse_study(text, base=path.parent, where=str(path))
    builtin = builtin_studies()
    if str(source) not in builtin:
        raise UnknownNameError.among("studie", str(source), builtin, field="study")
    return parse_study(builtin[str(source)], base=Path("."), where=str(source))


def parse_study(text: str, *, base: Path, where: str) -> Study:
    """A study from YAML text; relative paths are resolved against `base`."""
    try:
        raw = yaml.load(text, Loader=_UniqueLoader)
    except yaml.YAMLError as error:
        raise StudyError(f"{where} is not YAML: {' '.join(str(error).split())}", field="study", value=where,
                         expected="valid YAML", remedy="mend the line named above") from error  # fmt: skip
    if not isinstance(raw, dict):
        raise StudyError("a study is a mapping of fields", field="study", value=where, expected="`name: …` and so on",
                         remedy="start from a built-in one: `titer show quickstart`")  # fmt: skip
    return validated(Study, _absolute(raw, base), where)


def _absolute(raw: Any, base: Path) -> Any:
    """Make `path:` models and the `path` option of text sources independent of the working directory."""

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
    if isinstance(raw.get("pools"), dict):
        for name, pool in raw["pools"].items():
            options = pool.get("options") if isinstance(pool, dict) else None
            if isinstance(options, dict) and isinstance(options.get("path"), str):
                raw["pools"] = {**raw["pools"], name: {**pool, "options": {**options, "path": fix(options["path"])}}}
    return raw


def resolved_model(value: Any, base: Path = Path(".")) -> Any:
    """A model reference (text or mapping) with a relative path made absolute; anything else as it is."""
    if isinstance(value, str) and not value.startswith(("tiny:", "package:", "hub:")):
        return "path:" + str((base / Path(value.removeprefix("path:")).expanduser()).resolve())
    if isinstance(value, dict) and value.get("source") == "path" and isinstance(value.get("name"), str):
        return {**value, "name": str((base / Path(value["name"]).expanduser()).resolve())}
    return value


def validated(cls: type[BaseModel], raw: Any, where: str) -> Any:
    """`cls(**raw)`, with pydantic's complaints told as one StudyError naming field, value, expectation and remedy."""
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        first, more = error.errors(include_url=False)[0], error.error_count() - 1
        field = ".".join(str(part) for part in first["loc"]) or where
        message = first["msg"].removeprefix("Value error, ")
        unknown = first["type"] == "extra_forbidden"
        raise StudyError(
            f"{where}: {'unknown field' if unknown else message}" + (f" (and {more} more)" if more else ""),
            field=field,
            value=_short(first.get("input")),
            expected="a field this part of a study has" if unknown else message,
            remedy="correct the spelling, or remove it; docs/studies.md lists every field"
            if unknown
            else "mend this field",
        ) from error


def _short(value: Any, length: int = 120) -> Any:
    text = repr(value)
    return value if len(text) <= length else text[: length - 1] + "…"
