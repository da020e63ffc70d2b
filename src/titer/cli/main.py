"""`titer`: the application, and the one place where errors become messages and exit statuses."""

from __future__ import annotations

import os
import sys
from typing import Any

# Read when the libraries are imported: models are loaded quietly, tokenizers do not start threads
# of their own.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from titer.cli import (
    audit,
    catalogue,
    check,
    clean,
    compare,
    evaluate,
    judge,
    new,
    power,
    rejudge,
    report,
    run,
    single,
)
from titer.cli.console import say_error
from titer.errors import TiterError
from titer.version import __version__

# typer carries its own copy of click in newer versions and uses the installed one in older ones.
_UsageTrouble: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="titer",
    help="Up to which training budget does a language model's safety withstand harmful "
    "fine-tuning?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (
    run,
    evaluate,
    check,
    power,
    judge,
    rejudge,
    audit,
    compare,
    report,
    catalogue,
    new,
    single,
    clean,
):
    module.register(app)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 (work failed), 2 (wrong usage), 3 (a
    required guideline is not met), 130 (interrupted).
    """
    try:
        result = app(args=arguments, standalone_mode=False)
        status = result if isinstance(result, int) else 0
        if status == 130:  # newer typers turn an interruption into this status and say nothing
            raise KeyboardInterrupt
    except SystemExit as stop:  # typer found that whoever reads our output has gone
        status = stop.code if isinstance(stop.code, int) else 1
    except TiterError as error:
        say_error(str(error))
        status = error.exit_status
    except typer.Exit as stop:
        status = stop.exit_code
    except _UsageTrouble as error:
        say_error(_usage(error))
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        say_error("Interrupted. Finished cells are kept: the same command continues.")
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:  # a problem with the user's file or directory, not a bug
        say_error(
            f"{error.strerror or error}: {error.filename or 'a file'}. To do: check the path, its "
            "permissions and the space on the disk."
        )
        status = 1
    if arguments is None:
        sys.exit(status)
    return status


def _usage(error: Any) -> str:
    """The parser's error in one line, with a pointer to --help."""
    message = str(error.format_message()).replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    if (
        type(error).__name__ == "NoArgsIsHelpError"
    ):  # no command was named: its message is the whole help
        return message
    from pydantic import ValidationError

    cause = error.__cause__
    found = f" Found: {cause.errors()[0]['input']!r}." if isinstance(cause, ValidationError) else ""
    return f"{message}.{found} To do: see `{context.command_path if context else 'titer'} --help`."
