"""Every exception titer raises on purpose, in one place.

Two families, because they have two remedies and two exit statuses: `UsageError` (2) is a mistake in
the study or on the command line, found before any work is done; `RunError` (1) is a failure of a
machine, a file or a model during work. Anything else that escapes is a bug in titer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TiterError(Exception):
    """An error that states what is wrong, in which field, its value, what was expected, and a
    remedy.
    """

    exit_status = 1

    def __init__(
        self,
        problem: str,
        *,
        field: str | None = None,
        value: object = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.field, self.value, self.expected, self.remedy = (
            problem,
            field,
            value,
            expected,
            remedy,
        )
        parts = [problem.rstrip(".") + "."]
        if field is not None:
            parts.append(f"Field: {field} = {value!r}.")
        if expected:
            parts.append(f"Expected: {expected.rstrip('.')}.")
        if remedy:
            parts.append(f"To do: {remedy if remedy.endswith('?') else remedy.rstrip('.') + '.'}")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:  # workers send errors to their parent by pickling
        return _rebuild, (
            type(self),
            self.problem,
            self.field,
            self.value,
            self.expected,
            self.remedy,
        )


def _rebuild(
    cls: type[TiterError],
    problem: str,
    field: str | None,
    value: object,
    expected: str | None,
    remedy: str | None,
) -> TiterError:
    return cls(problem, field=field, value=value, expected=expected, remedy=remedy)


class UsageError(TiterError):
    """The study or the command line is wrong. Raised before any work is done."""

    exit_status = 2


class StudyError(UsageError):
    """A field of a study is missing, unknown or out of range, or two fields contradict one
    another.
    """


class UnknownNameError(UsageError):
    """A method, measure, study or source that no registry knows."""

    @classmethod
    def among(
        cls, kind: str, name: str, known: Iterable[str], *, field: str | None = None
    ) -> UnknownNameError:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        remedies = [f"did you mean {' or '.join(near)}?"] if near else []
        if kind in EXTENSIBLE:
            remedies += [f"`titer list {kind}s` shows all"] if not near else []
            remedies.append(own_hint(kind))
        return cls(
            f"no {kind} has this name",
            field=field or kind,
            value=name,
            expected=f"one of {', '.join(known)}",
            remedy=" ".join(r if r.endswith("?") else f"{r}." for r in remedies) or None,
        )


EXTENSIBLE = ("attack", "defense", "service", "measure", "judge")
"""Kinds of which users bring their own, and which `titer list` shows."""


def own_hint(kind: str) -> str:
    """How something that does not come with titer is made known to it."""
    return (
        f"For {'an' if kind[0] in 'aeiou' else 'a'} {kind} of your own, name its file "
        "(`plugins: [FILE.py]` in the study, or `--plugin FILE.py` with commands that have it), or "
        "call titer.register(CLASS) at the top level of your script"
    )


class ThreatModelError(StudyError):
    """A method that belongs to another threat model than the study's."""


class OverlapError(UsageError):
    """Defense, attack and evaluation data share an example exactly."""


class AssetError(UsageError):
    """A model, file or package is missing, truncated, or does not have the pinned hash."""


class RunError(TiterError):
    """Work that was started could not be finished. Finished cells are kept."""


class BusyRunError(RunError):
    """Another process works in the same run directory."""


class RecordError(RunError):
    """A record on disk is not valid: corrupted, of another format, or not what its name says."""


class StorageError(RunError):
    """The run directory cannot be written (permissions, disk full)."""


class MeasureError(RunError):
    """A measure cannot be computed on what it was given."""
