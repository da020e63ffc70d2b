"""`titer rejudge RUN`: a finished run judged again by another judge, without its models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from titer.cli.console import err, out, print_json
from titer.cli.options import Plugins, Settings, load_plugin_files, settings_of
from titer.study.counting import counted


def register(app: typer.Typer) -> None:
    app.command("rejudge")(rejudge_command)


def rejudge_command(
    run: Annotated[Path, typer.Argument(help="A run made with --keep-transcripts.")],
    to: Annotated[Path, typer.Option("--to", help="Directory for the run as judged again.")],
    judge: Annotated[str, typer.Option("--judge", help="The judge; see `titer list judges`.")],
    settings: Settings = None,
    plugins: Plugins = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judge the replies that a run kept by another judge. No model is loaded; `titer judge` and
    `titer report` then work on the new directory.
    """
    from titer.engine.rejudge import rejudge
    from titer.measures.judged import JudgeUse
    from titer.records.store import RunStore

    files = load_plugin_files(plugins)
    watched = not (quiet or as_json) and err.is_terminal

    def report(done: int, total: int) -> None:
        if watched:
            end = "\n" if done == total else ""
            print(f"\r{done}/{total} records", end=end, file=err.file, flush=True)

    made = rejudge(
        RunStore(run),
        RunStore(to),
        JudgeUse(name=judge, settings=settings_of(settings)),
        plugins=files,
        report=report,
    )
    if as_json:
        print_json({"run": str(to), **asdict(made)})
        return
    out.print(
        f"{counted(made.replies, 'reply', 'replies')} in {counted(made.records, 'record')} judged "
        f"again by {judge}; {counted(made.taken_over, 'record')} without a judge taken over",
        markup=False,
    )
    if made.unjudged:
        out.print(
            f"! without a judgement: {counted(made.unjudged, 'reply', 'replies')}", markup=False
        )
    if made.cut_short:
        out.print(
            f"! stopped by the previous judge where this one would have gone on: "
            f"{counted(made.cut_short, 'run')}, not counted as resisting",
            markup=False,
        )
    if made.unconfirmed:
        out.print(
            f"! breach suspected where no other prompts were read to confirm it: "
            f"{counted(made.unconfirmed, 'run')}, not counted as resisting",
            markup=False,
        )
    if made.missing or not made.complete:
        waiting = "" if made.complete else ", and a search now chooses other settings"
        out.print(
            f"! planned cells without a record: {made.missing}{waiting}; `titer run` with the "
            f"study in {to} finishes it",
            markup=False,
        )
    out.print(f"`titer judge {to}` gives the verdict", markup=False)
