"""`titer compare RUN…`: candidates of several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.console import out, print_json
from titer.study.counting import counted


def register(app: typer.Typer) -> None:
    app.command("compare")(compare_command)


def compare_command(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories; one with several candidates is enough.")
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs that ask different questions, and say so.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare candidates: verdicts side by side, and which of two is better, corrected for how many
    pairs there are.

    Refuses runs whose threat model, φ, battery, construct or harm prompts differ, unless --force is
    given.
    """
    from titer.records.store import RunStore
    from titer.verdicts.comparison.compare import compare

    made = compare([(str(r), RunStore(r).view()) for r in runs], force=force)
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    if made.differences:
        out.print(
            "Forced: these runs ask different questions, so no line below is a fair comparison.",
            markup=False,
        )
    for text in (*made.differences, *made.remarks):
        out.print(f"! {text}", markup=False)
    for c in made.sides:
        limit = "no lower limit"
        if c.titer_lower is not None:
            limit = f"titer ≥ {counted(c.titer_lower, 'step')}"
        out.print(
            f"{c.name}: {c.overall}; {limit}, worst attack {c.worst_attack or 'none'}; stability "
            f"{c.stability}, generalization {c.generalization}, trainability {c.trainability}",
            markup=False,
        )
    tests = len(made.attacks)
    out.print(
        f"Pairwise, α = {made.alpha:g} over each family ({tests} tests, Holm; {len(made.worst)} "
        f"ratios and {len(made.benchmarks)} differences, Bonferroni):",
        markup=False,
    )
    for text in (
        p.statement for family in (made.worst, made.attacks, made.benchmarks) for p in family
    ):
        out.print(f"- {text}", markup=False)
