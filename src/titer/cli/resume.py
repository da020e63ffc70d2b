"""Going on with a run: the command that does, and what to do where another run is in the way."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from titer.errors import RecordError, UsageError

if TYPE_CHECKING:
    from titer.study.spec import Study

SHOWN = 4
_SAME_RESULTS = ("eval_batch", "workers", "threads", "device", "price_per_hour")
"""Fields of `runtime` that make no other study."""


def command_line(context: typer.Context) -> str:
    """The command as it was given, fit to be pasted into a shell."""
    words = ["titer", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        given = context.params[name]
        for value in given if isinstance(given, (list, tuple)) else [given]:
            if parameter.param_type_name == "argument":
                words.append(str(value))
            elif isinstance(value, bool):
                words.append((parameter.opts if value else parameter.secondary_opts)[0])
            else:
                words += [parameter.opts[0], str(value)]
    return shlex.join(words)


def stored_study(directory: Path) -> Study | None:
    """The study that a run directory holds; None if it holds none that can be read."""
    from titer.records.store import RunStore

    with suppress(UsageError, RecordError):
        return RunStore(directory).study()
    return None


def refuse_another(study: Study, stored: Study, directory: Path) -> None:
    """Raises UsageError if the directory holds another study than this one, saying where they
    differ and what to do.
    """
    if study.digest == stored.digest:
        return
    found = list(_differences(_body(stored), _body(study)))
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise UsageError(
        "the run directory holds another evaluation",
        field="--run",
        value=str(directory),
        expected=f"the same models, text and options; they differ in {'; '.join(found[:SHOWN])}"
        f"{more}",
        remedy="give that run's options to go on with it, or --run NEW_DIRECTORY for this one; "
        f"--reuse {shlex.quote(str(directory))} takes over the finished cells that both have",
    )


def _body(study: Study) -> dict[str, Any]:
    body = study.model_dump(mode="json")
    for name in _SAME_RESULTS:
        del body["runtime"][name]
    return {k: v for k, v in body.items() if k not in ("title", "description", "plugins")}


def _differences(there: Any, here: Any, where: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys((*there, *here)):
            yield from _differences(there.get(key), here.get(key), f"{where}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (a, b) in enumerate(zip(there, here, strict=True)):
            name = a.get("name") or a.get("attack") if isinstance(a, dict) else None
            yield from _differences(a, b, f"{where}[{name or index}]")
    elif there != here:
        yield f"{where} ({_short(there)} there, {_short(here)} here)"


def _short(value: Any) -> str:
    text = "nothing" if value in (None, [], {}, "") else str(value)
    return text if len(text) <= 60 else f"{text[:28]} … {text[-28:]}"
