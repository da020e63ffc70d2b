"""What candidates, studies and run directories are called if nobody says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from titer.errors import StudyError
from titer.study.candidate import CONTROL
from titer.study.reference import ModelRef

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]*")
_LONGEST = 30


def called(candidates: Sequence[str]) -> dict[str, str]:
    """name → model of every `NAME=MODEL` or `MODEL`; the latter is called as its directory is, with
    a number if that name is taken. Raises StudyError for a name that is no name, or given twice.
    """
    parts = [_parts(c) for c in candidates]
    given = [name for name, _ in parts if name]
    for name in given:
        if given.count(name) > 1 or name == CONTROL:
            raise StudyError(
                "the undefended control has this name"
                if name == CONTROL
                else "two candidates have one name",
                field="candidate",
                value=name,
                expected="a name of its own for each, as NAME=PATH",
            )
    found: dict[str, str] = {}
    for name, model in parts:
        if not name:
            base = short_name(model)
            taken = {*found, *given, CONTROL}
            numbered = (f"{base}-{n}" for n in range(2, len(parts) + len(taken) + 2))
            name = next(n for n in (base, *numbered) if n not in taken)
        found[name] = model
    return found


def _parts(candidate: str) -> tuple[str, str]:
    """(name or nothing, model). A path may have an = in it: what stands before it is a name unless
    it looks like a path, or the whole is one."""
    name, equals, model = candidate.partition("=")
    if not equals or Path(candidate).expanduser().exists() or re.search(r"[/\\:~]", name):
        return "", candidate
    if not (_NAME.fullmatch(name) and len(name) <= 80 and model):
        raise StudyError(
            "this is not of the form NAME=PATH",
            field="candidate",
            value=candidate,
            expected="a name of letters, digits and _ . @ + - before the =, and a model behind it",
        )
    return name, model


def short_name(model: str) -> str:
    """The last part of a model's name or path, with what a file or study name may not hold taken
    out."""
    reference = ModelRef.model_validate(model)
    path = PurePath(reference.name)
    if reference.source == "path":
        path = Path(reference.name).expanduser().absolute()
        if path.name in ("", "..", "."):
            path = path.resolve()
    base = path.name.removesuffix(".gguf")
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9_.@+-]+", "-", base).strip("-.")[:_LONGEST] or "model"


def study_name(model: str, candidates: Sequence[str]) -> str:
    """What the pair's study, and so its run directory, is called."""
    first = candidates[0][:_LONGEST] if candidates else "nothing"
    whole = "+".join(candidates)
    others = whole if len(whole) <= _LONGEST else f"{first}+{len(candidates) - 1}"
    return f"evaluate-{short_name(model)}-vs-{others if len(candidates) > 1 else first}"
