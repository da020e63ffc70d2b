"""`titer list` and `titer show`."""

from __future__ import annotations

import difflib
import inspect
from enum import StrEnum
from typing import Annotated, Any

import typer

from titer.cli.console import out, print_json
from titer.cli.options import Plugins, load_plugin_files
from titer.errors import UnknownNameError


class Kind(StrEnum):
    attacks = "attacks"
    defenses = "defenses"
    services = "services"
    measures = "measures"
    judges = "judges"
    studies = "studies"


CLASSES = tuple(k for k in Kind if k is not Kind.studies)
SHOWN = ("role", "stage", "cost", "needs", "wants", "trains", "calibrated")
"""What a class declares about itself beside name, version and reference."""


def register(app: typer.Typer) -> None:
    app.command("list")(list_command)
    app.command("show")(show_command)


def _catalogue(kind: Kind) -> dict[str, Any]:
    """name → class, or study."""
    match kind:
        case Kind.studies:
            from titer.study import builtin_studies, load_study

            return {name: load_study(name) for name in builtin_studies()}
        case Kind.measures:
            from titer.measures.registry import measures

            return dict(measures())
        case Kind.judges:
            from titer.judges.registry import judges

            return dict(judges())
        case Kind.attacks | Kind.defenses | Kind.services:
            from titer.methods.registry import methods

            return dict(methods(_one(kind)))


def _one(kind: Kind) -> Any:
    return kind.value.removesuffix("s")


def _summary(value: Any) -> str:
    """The first sentence of a docstring, or a study's title."""
    if not inspect.isclass(value):
        return str(value.title)
    paragraph = (inspect.getdoc(value) or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).partition(". ")[0].removesuffix(".")


def list_command(
    kind: Annotated[
        Kind | None, typer.Argument(help="What to list; everything if omitted.")
    ] = None,
    plugins: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List attacks, defenses, services, measures, judges and built-in studies."""
    load_plugin_files(plugins)
    found = {
        k.value: {n: _summary(v) for n, v in sorted(_catalogue(k).items())}
        for k in ([kind] if kind else Kind)
    }
    if as_json:
        print_json(found)
        return
    for group, names in found.items():
        out.print(f"{group}:", markup=False)
        for name, text in names.items():
            out.print(f"  {name:24} {text}", markup=False)


def show_command(
    name: Annotated[
        str,
        typer.Argument(help="An attack, defense, service, measure, judge or built-in study."),
    ],
    plugins: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Settings, defaults, reference and cost of one thing; the YAML of a built-in study."""
    from titer.study import builtin_studies

    load_plugin_files(plugins)
    studies = builtin_studies()
    if name in studies:
        if as_json:
            print_json(_catalogue(Kind.studies)[name].model_dump(mode="json"))
        else:
            out.print(studies[name], markup=False, end="")
        return
    known = {n: (kind, cls) for kind in CLASSES for n, cls in _catalogue(kind).items()}
    if name not in known:
        every = sorted([*known, *studies])
        near = difflib.get_close_matches(name, every, n=3, cutoff=0.5)
        raise UnknownNameError(
            "no attack, defense, service, measure, judge or built-in study has this name",
            field="name",
            value=name,
            expected=f"one of {', '.join(every)}",
            remedy=(f"did you mean {' or '.join(near)}? " if near else "`titer list` shows all. ")
            + "One of your own is known with `--plugin FILE.py`",
        )
    kind, cls = known[name]
    facts = _facts(name, kind, cls)
    if as_json:
        print_json(facts)
        return
    out.print(inspect.getdoc(cls) or "", markup=False)
    for key, value in facts.items():
        if key not in ("settings", "required"):
            out.print(f"{key}: {_told(value)}", markup=False)
    out.print("settings:", markup=False)
    for key, value in facts["settings"].items():
        told = "required" if key in facts["required"] else repr(value)
        out.print(f"  {key}: {told}", markup=False)


def _facts(name: str, kind: Kind, cls: Any) -> dict[str, Any]:
    """required: the settings without a default; it is None here."""
    fields = {f.alias or n: f for n, f in cls.model_fields.items()}
    facts = {
        "name": name,
        "kind": _one(kind),
        "version": cls.version,
        "reference": cls.reference,
        **{k: getattr(cls, k) for k in SHOWN if hasattr(cls, k)},
        "settings": {
            n: None if f.is_required() else f.get_default(call_default_factory=True)
            for n, f in fields.items()
        },
        "required": [n for n, f in fields.items() if f.is_required()],
    }
    from pydantic_core import to_jsonable_python

    plain: dict[str, Any] = to_jsonable_python(facts)
    return plain


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
