"""`titer report RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.console import out, print_json


def register(app: typer.Typer) -> None:
    app.command("report")(report_command)


def report_command(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    to: Annotated[Path | None, typer.Option(help="Directory to write to (default: the run directory).")] = None,
    show_transcripts: Annotated[bool, typer.Option(help="Include what models said. May be harmful text.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> None:
    """Write report.html, report.md and verdict.json from the records of a run."""
    import titer

    paths = titer.write_report(run, to=to, show_transcripts=show_transcripts)
    if as_json:
        print_json({"html": str(paths.html), "markdown": str(paths.markdown), "json": str(paths.json)})
    else:
        out.print(f"{paths.html}\n{paths.markdown}\n{paths.json}", markup=False)
