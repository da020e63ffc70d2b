"""`titer list` and `titer show`."""

from __future__ import annotations

import difflib
import inspect
from enum import StrEnum
from typing import Annotated, Any

import typer

from titer.cli.console import out, print_json
from titer.errors import UnknownNameError


class Kind(StrEnum):
    attacks = "attacks"
    defenses = "defenses"
    measures = "measures"
    studies = "studies"


def register(app: typer.Typer) -> None:
    app.command("list")(list_command)
    app.command("show")(show_command)


def _catalogue(kind: Kind) -> dict[str, Any]:
    if kind is Kind.studies:
        from titer.study import builtin_studies, load_study

        return {name: load_study(name) for name in builtin_studies()}
    if kind is Kind.measures:
        from titer.measures.registry import measures

        return measures()
    from titer.methods.registry import methods

    return methods(kind.value.removesuffix("s"))


def _summary(value: Any) -> str:
    return (
        value.title
        if not inspect.isclass(value)
        else (inspect.getdoc(value) or "").partition("\n")[0]
    )


def list_command(
    kind: Annotated[
        Kind | None, typer.Argument(help="What to list; everything if omitted.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List attacks, defenses, measures and built-in studies."""
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
    name: Annotated[str, typer.Argument(help="An attack, defense, measure or built-in study.")],
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Settings, defaults, reference and cost of one thing; the YAML of a built-in study."""
    if name in (studies := _yaml()):
        if as_json:
            print_json(_catalogue(Kind.studies)[name].model_dump(mode="json"))
        else:
            out.print(studies[name], markup=False, end="")
        return
    known: dict[str, Any] = {}
    for kind in (Kind.attacks, Kind.defenses, Kind.measures):
        known |= _catalogue(kind)
    if name not in known:
        every = sorted([*known, *studies])
        near = difflib.get_close_matches(name, every, n=3, cutoff=0.5)
        raise UnknownNameError(
            "no attack, defense, measure or built-in study has this name",
            field="name",
            value=name,
            expected=f"one of {', '.join(every)}",
            remedy=f"did you mean {' or '.join(near)}" if near else "`titer list` shows all",
        )
    cls = known[name]
    facts = {
        "name": name,
        "version": cls.version,
        "reference": cls.reference,
        **{
            k: getattr(cls, k)
            for k in ("kind", "role", "stage", "cost", "needs")
            if hasattr(cls, k)
        },
        "settings": {n: f.get_default() for n, f in cls.model_fields.items()},
    }
    if as_json:
        print_json(facts)
        return
    out.print(inspect.getdoc(cls) or "", markup=False)
    for key, value in facts.items():
        out.print(f"{key}: {value}" if key != "settings" else "settings:", markup=False)
    for key, value in facts["settings"].items():
        out.print(f"  {key}: {value!r}", markup=False)


def _yaml() -> dict[str, str]:
    from titer.study import builtin_studies

    return builtin_studies()
