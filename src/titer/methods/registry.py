"""Methods by name: built-in ones are found in their folders, plug-ins through entry points.

Adding a built-in method is one file in methods/attacks or methods/defenses. A plug-in package declares
`[project.entry-points."titer.attacks"] my_attack = "my_package:MyAttack"` (or `titer.defenses`).
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from pydantic import ValidationError

from titer.errors import StudyError, ThreatModelError, UnknownNameError
from titer.methods.method import Attack, Defense, Method
from titer.study.plugins import plugged

KINDS: dict[str, type[Method]] = {"attack": Attack, "defense": Defense}  # type: ignore[type-abstract]


@cache
def methods(kind: str) -> dict[str, type[Method]]:
    """name → class of every attack or defense that is installed. Raises StudyError if a plug-in is not one."""
    base, found = KINDS[kind], {}
    package = importlib.import_module(f"titer.methods.{kind}s")
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == loaded.__name__:
                found[value.name] = value
    found.update(plugged(f"titer.{kind}s", base, found))
    return found


def resolve(
    kind: str, name: str, settings: dict[str, Any], *, field: str = "", threat_model: str | None = None
) -> Method:
    """The method with its settings checked. Raises UnknownNameError, StudyError, ThreatModelError."""
    known = methods(kind)
    if name not in known:
        raise UnknownNameError.among(kind, name, known, field=field or kind)
    cls = known[name]
    if threat_model == "open_weights" and issubclass(cls, Defense) and cls.stage in ("during", "after"):
        raise ThreatModelError(
            f"{name} acts {cls.stage} the attacker's fine-tuning, which a defender of open weights cannot",
            field=field or kind, value=name,
            expected="a defense of stage 'pre' or 'weights' under threat_model open_weights",
            remedy="choose another defense, or study it under threat_model: fine_tuning_service",
        )  # fmt: skip
    try:
        return cls(**settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        raise StudyError(
            f"{name}: {'unknown setting' if unknown else first['msg']}",
            field=f"{field or kind}.settings.{where}", value=first.get("input"),
            expected=f"one of {', '.join(cls.model_fields)}" if unknown else first["msg"],
            remedy=f"`titer show {name}` lists its settings and defaults",
        ) from error  # fmt: skip
