"""The specification of a study: frozen settings, YAML loading, digests. No torch here."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titer.study.load import builtin_studies, load_study
    from titer.study.reference import ModelRef
    from titer.study.spec import Study

__all__ = ["ModelRef", "Study", "builtin_studies", "load_study"]

_PLACES = {
    "ModelRef": "titer.study.reference",
    "Study": "titer.study.spec",
    "builtin_studies": "titer.study.load",
    "load_study": "titer.study.load",
}
"""Imported when they are first asked for: `titer --help` needs none of them."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'titer.study' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
