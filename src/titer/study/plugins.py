"""What other packages bring through entry points, refused where it could pass for something else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from titer.errors import StudyError


def plugged(group: str, base: type, taken: Mapping[str, type]) -> dict[str, type]:
    """name → class of every plug-in of an entry-point group. taken: the built-in ones.

    Raises StudyError if a plug-in is no `base`, goes by another name than its class, or has a name that is taken: a package that
    brought a `full_sft` of its own could otherwise give its results the address of the built-in one's.
    """
    found: dict[str, type] = {}
    for entry in entry_points(group=group):
        value = entry.load()
        if not (isinstance(value, type) and issubclass(value, base)):
            problem, expected = (
                f"the plug-in {entry.name} is not what its group holds",
                f"a subclass of {base.__module__}.{base.__name__}",
            )
        elif getattr(value, "name", None) != entry.name:
            problem, expected = (
                f"the plug-in {entry.name} has another name",
                f"an entry point called {getattr(value, 'name', None)!r}",
            )
        elif entry.name in taken or entry.name in found:
            problem, expected = f"the plug-in {entry.name} has a name that is taken", "a name of its own"
        else:
            found[entry.name] = value
            continue
        raise StudyError(
            problem, field=group, value=entry.value, expected=expected, remedy="mend or uninstall the plug-in"
        )
    return found
