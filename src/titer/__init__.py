"""titer: up to which training budget a model's safety withstands harmful fine-tuning."""

from typing import TYPE_CHECKING, Any

from titer.version import __version__

if TYPE_CHECKING:
    from titer.api import judge, run, write_report
    from titer.study import Study, load_study
    from titer.study.plugins import register

__all__ = ["Study", "__version__", "judge", "load_study", "register", "run", "write_report"]

_PLACES = {
    "Study": "titer.study",
    "judge": "titer.api",
    "load_study": "titer.study",
    "register": "titer.study.plugins",
    "run": "titer.api",
    "write_report": "titer.api",
}
"""Imported when they are first asked for: every command and worker imports titer."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'titer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
