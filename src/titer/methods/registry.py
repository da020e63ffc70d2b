"""Methods by name: built-in ones are found in their folders, others are registered or plugged in.

Adding a built-in method is one file in methods/attacks, methods/defenses or methods/services. See
`titer.study.plugins` for methods from outside.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from pydantic import ValidationError

from titer.errors import StudyError, ThreatModelError, UnknownNameError
from titer.methods.method import Attack, Defense, Method, ServiceDefense
from titer.study.facts import MethodKind
from titer.study.plugins import changes, plugged

KINDS: dict[MethodKind, type[Method]] = {
    "attack": Attack,  # type: ignore[type-abstract]
    "defense": Defense,  # type: ignore[type-abstract]
    "service": ServiceDefense,
}


def methods(kind: MethodKind) -> dict[str, type[Method]]:
    """name → class of every method of a kind. Raises StudyError if a plug-in is not one."""
    return _methods(kind, changes())


@cache
def _methods(kind: MethodKind, registered: int) -> dict[str, type[Method]]:
    base: type[Method] = KINDS[kind]
    found: dict[str, type[Method]] = {}
    package = importlib.import_module(f"titer.methods.{kind}s")
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for value in vars(loaded).values():
            if (
                isinstance(value, type)
                and issubclass(value, base)
                and value.__module__ == loaded.__name__
                and "name" in vars(value)  # a base class shared by several methods has none
                and not inspect.isabstract(value)
            ):
                found[value.name] = value
    found.update(plugged(f"titer.{kind}s", base, found))
    return found


def resolve(
    kind: MethodKind,
    name: str,
    settings: dict[str, Any],
    *,
    field: str = "",
    threat_model: str | None = None,
) -> Any:
    """The method with checked settings. Raises UnknownNameError, StudyError, ThreatModelError."""
    known = methods(kind)
    if name not in known:
        if kind == "defense" and name in methods("service"):
            raise ThreatModelError(
                f"{name} acts during the attacker's fine-tuning: it is the defense of a service",
                field=field or kind,
                value=name,
                expected="a defense that acts before release",
                remedy="make it the candidate's `service` under threat_model fine_tuning_service",
            )
        raise UnknownNameError.among(kind, name, known, field=field or kind)
    cls = known[name]
    if threat_model == "open_weights" and kind == "service":
        raise ThreatModelError(
            f"{name} needs control over the attacker's fine-tuning, which a defender of open "
            "weights does not have",
            field=field or kind,
            value=name,
            expected="a defense that acts before release under threat_model open_weights",
            remedy="choose another defense, or study it under threat_model: fine_tuning_service",
        )
    try:
        return cls(**settings)
    except (StudyError, UnknownNameError) as error:  # from a setting that names another method
        raise type(error)(
            error.problem,
            field=f"{field or kind}.settings.{error.field or ''}".rstrip("."),
            value=error.value,
            expected=error.expected,
            remedy=error.remedy,
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        unknown = first["type"] == "extra_forbidden" and len(first["loc"]) == 1
        raise StudyError(
            f"{name}: {'unknown setting' if unknown else first['msg']}",
            field=f"{field or kind}.settings.{where}".rstrip("."),
            value=first.get("input"),
            expected=f"one of {', '.join(cls.model_fields)}" if unknown else first["msg"],
            remedy=f"`titer show {name}` lists its settings and defaults",
        ) from error
