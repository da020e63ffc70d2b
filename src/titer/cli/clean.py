"""`titer clean RUN`: remove what an interrupted run left behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from titer.cli.console import out
from titer.study.counting import counted


def register(app: typer.Typer) -> None:
    app.command("clean")(clean_command)


def clean_command(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    models: Annotated[
        bool, typer.Option(help="Also the defended models kept for unfinished cells.")
    ] = False,
) -> None:
    """Delete what interrupted runs left behind.

    That is rolling checkpoints (half-attacked weights) and half-written files. Records stay.
    """
    from titer.records.store import RunStore

    store = RunStore(run)
    store.study()  # refuses what is not a run directory
    with store.locked():
        removed = store.purge()
        if store.work.exists():
            removed += sum(1 for _ in store.work.iterdir())
            shutil.rmtree(store.work)
        if models and store.models.exists():
            removed += sum(1 for _ in store.models.iterdir())
            shutil.rmtree(store.models)
    out.print(f"removed {counted(removed, 'leftover')}", markup=False)
