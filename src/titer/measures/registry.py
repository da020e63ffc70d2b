"""Measures by name: the built-in ones, those registered in this process, and plug-ins through the
entry-point group `titer.measures`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from pydantic import ValidationError

from titer.errors import StudyError, UnknownNameError
from titer.measures.measure import Measure
from titer.study.plugins import changes, plugged


def measures() -> dict[str, type[Measure]]:
    """name → class of every measure that is installed or registered. Bases of measures, which are
    abstract or have no name of their own, are left out. Raises StudyError if a plug-in is not a
    measure.
    """
    return _measures(changes())


@cache
def _measures(registered: int) -> dict[str, type[Measure]]:
    found: dict[str, type[Measure]] = {}
    package = importlib.import_module("titer.measures")
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"titer.measures.{module.name}")
        found |= {value.name: value for value in vars(loaded).values() if _is_whole(value)}
    brought = plugged("titer.measures", Measure, found)
    return found | {name: cls for name, cls in brought.items() if _is_whole(cls)}


def _is_whole(value: Any) -> bool:
    """Whether it is a measure that can be used: not abstract, and with a name of its own."""
    return (
        inspect.isclass(value)
        and issubclass(value, Measure)
        and not inspect.isabstract(value)
        and "name" in vars(value)
    )


def resolve_measure(name: str, settings: dict[str, Any], *, field: str = "measure") -> Measure:
    """The measure with its settings checked. Raises UnknownNameError, StudyError."""
    known = measures()
    if name not in known:
        raise UnknownNameError.among("measure", name, known, field=field)
    try:
        return known[name](**settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fields = known[name].model_fields
        raise StudyError(
            f"{name}: {first['msg']}",
            field=f"{field}.settings.{'.'.join(map(str, first['loc']))}",
            value=first.get("input"),
            expected=f"settings among {', '.join(f.alias or n for n, f in fields.items())}",
            remedy=f"`titer show {name}` lists them",
        ) from error
    except (StudyError, UnknownNameError) as error:  # from a validator, which knows no study
        raise type(error)(
            error.problem,
            field=f"{field}.settings.{error.field}",
            value=error.value,
            expected=error.expected,
            remedy=error.remedy,
        ) from error
