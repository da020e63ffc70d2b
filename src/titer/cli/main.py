"""`titer`: the application, and the one place where errors become messages and exit statuses."""

from __future__ import annotations

import os
import sys

# Read when the libraries are imported: models are loaded quietly, tokenizers do not start threads of their own.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import click
import typer

from titer.cli import audit, catalogue, check, clean, compare, evaluate, judge, power, report, run, single
from titer.cli.console import say_error
from titer.errors import TiterError

app = typer.Typer(
    name="titer",
    help="Up to which training budget does a language model's safety withstand harmful fine-tuning?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (run, evaluate, check, power, judge, audit, compare, report, catalogue, single, clean):
    module.register(app)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        import titer

        typer.echo(titer.__version__)
        raise typer.Exit()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 (work failed), 2 (wrong usage), 3 (a required guideline is
    not met), 130 (interrupted)."""
    try:
        result = app(args=arguments, standalone_mode=False)
        status = result if isinstance(result, int) else 0
    except TiterError as error:
        say_error(str(error))
        status = error.exit_status
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.ClickException as error:
        say_error(
            error.format_message()
            + (f" (see `{error.ctx.command_path} --help`)" if getattr(error, "ctx", None) else "")
        )
        status = 2
    except (KeyboardInterrupt, click.Abort):
        say_error("Interrupted. Finished cells are kept: the same command continues.")
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    if arguments is None:
        sys.exit(status)
    return status
