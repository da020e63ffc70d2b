"""`titer rejudge RUN`: a finished run judged again by another judge, without its models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from titer.cli.console import err, out, print_json
from titer.cli.options import Plugins, Settings, load_plugin_files, settings_of


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
        f"{made.replies} replies in {made.records} records judged again by {judge}; "
        f"{made.taken_over} records without a judge taken over",
        markup=False,
    )
    if made.unjudged:
        out.print(f"! {made.unjudged} replies have no judgement", markup=False)
    if made.cut_short:
        out.print(
            f"! {made.cut_short} runs were stopped by the judge before, where this one would have "
            "let them go on; they do not count as resisting",
            markup=False,
        )
    if made.unconfirmed:
        out.print(
            f"! in {made.unconfirmed} runs this judge suspects a breach where no other prompts "
            "were read to confirm it; they do not count as resisting",
            markup=False,
        )
    if made.missing or not made.complete:
        waiting = "" if made.complete else ", and a search now chooses other settings"
        out.print(
            f"! {made.missing} planned cells have no record{waiting}; `titer run` with the study "
            f"in {to} finishes it",
            markup=False,
        )
    out.print(f"`titer judge {to}` gives the verdict", markup=False)
