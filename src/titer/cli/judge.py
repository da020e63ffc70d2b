"""`titer judge RUN`: the verdict again from the records, without models or torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.console import print_json, print_verdict


def register(app: typer.Typer) -> None:
    app.command("judge")(judge_command)


def judge_command(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Judge the records of a run (also an unfinished one)."""
    import titer

    verdict = titer.judge(run)
    if as_json:
        print_json(verdict.model_dump(mode="json"))
    else:
        print_verdict(verdict)
