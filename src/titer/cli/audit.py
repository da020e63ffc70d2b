"""`titer audit RUN`: the guidelines card, computed from the records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.console import out, print_json
from titer.errors import UnknownNameError

UNMET = 3
"""Exit status when a guideline marked as required is not met."""
SIGNS = {"met": "✓", "not met": "✕", "not applicable": "–"}


def register(app: typer.Typer) -> None:
    app.command("audit")(audit_command)


def audit_command(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="A guideline that must be met, by its code; repeatable. `all` for every one."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a run against the guidelines for defense research. Exits 3 if a required one is not
    met.
    """
    import titer

    card = titer.judge(run).guidelines
    known = {g.code: g for g in card}
    wanted = list(known) if "all" in (require or ()) else list(dict.fromkeys(require or ()))
    for code in wanted:
        if code not in known:
            raise UnknownNameError.among("guideline", code, [*known, "all"], field="--require")
    # What does not apply cannot be missed: a study without candidates has no defense whose cost
    # could be told.
    failed = [code for code in wanted if known[code].status == "not met"]
    if as_json:
        print_json(
            {"guidelines": [g.model_dump() for g in card], "required": wanted, "not_met": failed}
        )
    else:
        for g in card:
            mark = " (required)" if g.code in wanted else ""
            out.print(
                f"{SIGNS[g.status]} {g.code}{mark}: {g.name}: {g.status}. {g.evidence}",
                markup=False,
            )
        met, of = (
            sum(g.status == "met" for g in card),
            sum(g.status != "not applicable" for g in card),
        )
        out.print(
            f"{met} of {of} applicable guidelines met"
            + (f"; required but not met: {', '.join(failed)}" if failed else ""),
            markup=False,
        )
    if failed:
        raise typer.Exit(UNMET)
