"""Measures by name: the built-in ones, and plug-ins through the entry-point group `titer.measures`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from pydantic import ValidationError

from titer.errors import StudyError, UnknownNameError
from titer.measures.measure import Measure
from titer.study.plugins import plugged


@cache
def measures() -> dict[str, type[Measure]]:
    """name → class of every measure that is installed. Raises StudyError if a plug-in is not one."""
    found: dict[str, type[Measure]] = {}
    package = importlib.import_module("titer.measures")
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"titer.measures.{module.name}")
        for value in vars(loaded).values():
            if inspect.isclass(value) and issubclass(value, Measure) and hasattr(value, "name"):
                found[value.name] = value
    found.update(plugged("titer.measures", Measure, found))
    return found


def resolve_measure(name: str, settings: dict[str, Any], *, field: str = "measure") -> Measure:
    """The measure with its settings checked. Raises UnknownNameError, StudyError."""
    known = measures()
    if name not in known:
        raise UnknownNameError.among("measure", name, known, field=field)
    try:
        return known[name](**settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StudyError(f"{name}: {first['msg']}", field=f"{field}.settings.{'.'.join(map(str, first['loc']))}",
                         value=first.get("input"), expected=f"settings among {', '.join(known[name].model_fields)}",
                         remedy=f"`titer show {name}` lists them") from error  # fmt: skip
