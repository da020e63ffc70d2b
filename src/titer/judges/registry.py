"""Judges by name: the built-in ones, those registered in this process, and plug-ins through the
entry-point group `titer.judges`.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from pydantic import ValidationError

from titer.errors import StudyError, UnknownNameError
from titer.judges.classifier import ClassifierJudge
from titer.judges.http import ChatJudge
from titer.judges.judge import Judge
from titer.study.plugins import changes, plugged

BUILT_IN: tuple[type[Judge], ...] = (ChatJudge, ClassifierJudge)


def judges() -> dict[str, type[Judge]]:
    """name → class of every judge that is installed or registered. Raises StudyError if a plug-in
    is not a judge.
    """
    return _judges(changes())


@cache
def _judges(registered: int) -> dict[str, type[Judge]]:
    found = {cls.name: cls for cls in BUILT_IN}
    brought = plugged("titer.judges", Judge, found)
    return found | {name: cls for name, cls in brought.items() if not inspect.isabstract(cls)}


def resolve_judge(name: str, settings: dict[str, Any], *, field: str = "judge") -> Judge:
    """The judge with its settings checked. Raises UnknownNameError, StudyError."""
    known = judges()
    if name not in known:
        raise UnknownNameError.among("judge", name, known, field=f"{field}.name")
    try:
        return known[name](**settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # The value of an unknown field may be a key, so it is not repeated.
        unknown = first["type"] == "extra_forbidden"
        raise StudyError(
            f"{name}: {first['msg']}",
            field=f"{field}.settings.{'.'.join(map(str, first['loc']))}",
            value="(not shown)" if unknown else first.get("input"),
            expected=f"settings among {', '.join(known[name].model_fields)}",
        ) from error
    except StudyError as error:
        raise StudyError(
            error.problem,
            field=f"{field}.settings.{error.field}",
            value=error.value,
            expected=error.expected,
            remedy=error.remedy,
        ) from error
