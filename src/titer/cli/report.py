"""`titer report RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli.console import out, print_json
from titer.errors import StorageError, UsageError


def register(app: typer.Typer) -> None:
    app.command("report")(report_command)


def report_command(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    to: Annotated[
        Path | None,
        typer.Option(
            help="Directory to write to (default: the run directory). With --card: a file; without "
            "it, print."
        ),
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="Only the model-card section about this candidate.")
    ] = None,
    show_transcripts: Annotated[
        bool, typer.Option(help="Include what models said. May be harmful text.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> None:
    """Write report.html, report.md and verdict.json from the records of a run."""
    import titer

    if card is not None:
        write_card(run, card, to, as_json)
        return
    paths = titer.write_report(run, to=to, show_transcripts=show_transcripts)
    if as_json:
        print_json(
            {"html": str(paths.html), "markdown": str(paths.markdown), "json": str(paths.json)}
        )
    else:
        out.print(f"{paths.html}\n{paths.markdown}\n{paths.json}", markup=False)


def write_card(run: Path, candidate: str, to: Path | None, as_json: bool) -> None:
    """Print the section about one candidate, or write it to the file `to`. A file that is anything
    but an earlier section is left alone: it is likely to be the whole model card.
    """
    from titer.records.store import RunStore
    from titer.report import model_card_section
    from titer.report.card import TITLE
    from titer.verdicts import judge

    view = RunStore(run).view()
    text = model_card_section(judge(view), candidate, view=view)
    if to is not None:
        if to.is_file() and not to.read_text("utf-8", errors="replace").startswith(TITLE):
            raise UsageError(
                "this file exists and is not a section written here",
                field="--to",
                value=str(to),
                expected="a new file, or an earlier section to replace",
                remedy="choose another name, and put the section into the model card by hand",
            )
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(
                "the model-card section cannot be written",
                field="--to",
                value=str(to),
                expected="a file name in a directory that can be written to",
                remedy=f"choose another one ({error.strerror})",
            ) from error
    if as_json:
        print_json({"candidate": candidate, "markdown": text, "path": str(to) if to else None})
    else:
        print(to if to else text, end="\n" if to else "")
