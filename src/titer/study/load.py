"""Reading a study from YAML, a dictionary, or the name of a built-in one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from titer.errors import StudyError, UnknownNameError
from titer.study.complaints import short, validated
from titer.study.spec import Study
from titer.study.yaml_text import UniqueKeyLoader, numbers

# YAML 1.1 reads 1e-3 as text; researchers write learning rates so. Accept it as the number it is.
UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


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
        return validated(Study, numbers(dict(source)), "study")
    if not isinstance(source, (str, Path)):
        raise StudyError(
            "this is not a study",
            field="study",
            value=short(source),
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
        raw = yaml.load(text, Loader=UniqueKeyLoader)
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
            value=short(raw),
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
