"""Options that several commands share: settings as name=value, plug-in files, further models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from titer.errors import UsageError

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, as name=value; repeatable."),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", help="A Python file that defines methods, measures or judges; repeatable."
    ),
]
FurtherModels = Annotated[
    list[str] | None,
    typer.Option(
        "--further-model", help="A model the method reads by name, as name=MODEL; repeatable."
    ),
]


def settings_of(given: Sequence[str] | None) -> dict[str, Any]:
    """`name=value` as settings; a value is a number or YAML where it reads as such, else text."""
    return {name: _value(text) for name, text in pairs(given, "--set", "for example lr=1e-4")}


def pairs(given: Sequence[str] | None, option: str, example: str) -> list[tuple[str, str]]:
    """The parts of every `name=value`. Raises UsageError."""
    found = []
    for item in given or ():
        name, equals, value = item.partition("=")
        if not (equals and name):
            raise UsageError(
                "this is not of the form name=value",
                field=option,
                value=item,
                expected=example,
            )
        found.append((name, value))
    return found


def _value(text: str) -> Any:
    try:
        # YAML 1.1 reads 1e-4 as text.
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):  # text, which whoever gets it may refuse
        return text


def load_plugin_files(paths: Sequence[Path] | None) -> tuple[str, ...]:
    """Make what the files define known in this process; their absolute paths. Raises StudyError."""
    from titer.study.plugins import load_plugins

    whole = tuple(str(path.expanduser().resolve()) for path in paths or ())
    load_plugins(whole)
    return whole
