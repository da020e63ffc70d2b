"""`titer run STUDY`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.console import out, print_json, print_verdict, progress
from titer.errors import UsageError

if TYPE_CHECKING:
    from titer.study.spec import Study


def register(app: typer.Typer) -> None:
    app.command("run")(run_command)


def run_command(
    study: Annotated[str, typer.Argument(help="A YAML file, or the name of a built-in study.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Run directory (default: runs/NAME).")
    ] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Take finished records over from this run directory.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes (overrides the study).")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads per worker (overrides the study).")
    ] = None,
    transcripts: Annotated[
        bool,
        typer.Option(
            "--keep-transcripts",
            "--transcripts",
            help="Keep what models say, in RUN/transcripts: for `titer rejudge` and reports.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Run a study to its end, judge it and write the report. The same command resumes what was
    interrupted.
    """
    from titer.study import load_study

    spec = load_study(study)
    perform(
        spec,
        run or Path("runs") / spec.name,
        reuse=reuse,
        workers=workers,
        threads=threads,
        transcripts=transcripts,
        quiet=quiet,
        as_json=as_json,
    )


def perform(
    study: Study,
    directory: Path,
    *,
    reuse: list[Path] | None,
    workers: int | None,
    threads: int | None,
    transcripts: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run, judge, report, print; shared with `evaluate`."""
    import titer

    for other in reuse or ():
        if not (
            other / "cells"
        ).is_dir():  # with a misspelt path all work would silently be repeated
            raise UsageError(
                "there are no records to reuse",
                field="--reuse",
                value=str(other),
                expected="a run directory",
            )
    with progress(quiet or as_json) as report:
        titer.run(
            study,
            directory,
            reuse=tuple(reuse or ()),
            workers=workers,
            threads=threads,
            keep_transcripts=transcripts,
            report=report,
        )
    verdict = titer.judge(directory)
    paths = titer.write_report(directory)
    if as_json:
        print_json(verdict.model_dump(mode="json"))
        return
    print_verdict(verdict)
    out.print(f"Report: {paths.html}", markup=False)
