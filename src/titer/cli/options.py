"""Options that several commands share: settings as name=value, plug-in files, further models, files
of text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.console import err
from titer.errors import OverlapError, UsageError

if TYPE_CHECKING:
    from titer.study.releaser import OwnText

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, as name=value; repeatable."),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", help="A Python file that defines methods, measures or judges; repeatable."
    ),
]
FurtherModels = Annotated[
    list[str] | None,
    typer.Option(
        "--further-model", help="A model the method reads by name, as name=MODEL; repeatable."
    ),
]

FILE = "JSONL, JSON, CSV or Parquet with"
HarmMeasure = Annotated[
    str | None,
    typer.Option(
        help="What harm is read with at every probe: compliance_likelihood, compliance_generated "
        "or exact_answer. Default: the first; the tiny model, the last.",
    ),
]
MaxLength = Annotated[int, typer.Option(min=8, help="Tokens of a training sequence.")]
Precision = Annotated[
    str, typer.Option("--dtype", "--precision", help="fp32, or bf16_autocast (bf16).")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
_PRECISIONS = {"float32": "fp32", "bf16": "bf16_autocast", "bfloat16": "bf16_autocast"}


def harm_measure_of(model: str, given: str | None) -> str:
    """The measure of harm, if none is given the one that fits the model: the tiny one knows answers
    and no manners.
    """
    return given or ("exact_answer" if model.startswith("tiny:") else "compliance_likelihood")


def runtime_of(max_length: int, precision: str, device: str) -> dict[str, Any]:
    """These options as a study has them."""
    precision = _PRECISIONS.get(precision, precision)
    return {"max_length": max_length, "precision": precision, "device": device}


def sayer(quiet: bool) -> Callable[[str], None]:
    """Says things beside the result, or nothing."""
    return lambda text: None if quiet else err.print(text, markup=False)


def settings_of(given: Sequence[str] | None) -> dict[str, Any]:
    """`name=value` as settings; a value is a number or YAML where it reads as such, else text."""
    return {name: value_of(text) for name, text in pairs(given, "--set", "for example lr=1e-4")}


def pairs(given: Sequence[str] | None, option: str, example: str) -> list[tuple[str, str]]:
    """The parts of every `name=value`. Raises UsageError."""
    found = []
    for item in given or ():
        name, equals, value = item.partition("=")
        if not (equals and name):
            raise UsageError(
                "this is not of the form name=value",
                field=option,
                value=item,
                expected=example,
            )
        found.append((name, value))
    return found


def value_of(text: str) -> Any:
    """A number or YAML where the text reads as such, else the text."""
    import yaml

    from titer.study.yaml_text import numbers

    try:
        return numbers(yaml.safe_load(text))  # YAML 1.1 reads 1e-4 as text
    except yaml.YAMLError:  # text, which whoever gets it may refuse
        return text


def load_plugin_files(paths: Sequence[Path] | None) -> tuple[str, ...]:
    """Make what the files define known in this process; their absolute paths. Raises StudyError."""
    from titer.study.plugins import load_plugins

    whole = tuple(str(path.expanduser().resolve()) for path in paths or ())
    load_plugins(whole)
    return whole


def text_of(
    path: Path | None, field: str, say: Callable[[str], None], needs: Collection[str] = ()
) -> OwnText | None:
    """A file of the user's own text, if one is given; says what of it is read. Raises StudyError
    naming the row that lacks something.
    """
    if path is None:
        return None
    from titer.data.sources.files import own_text

    found = own_text(path, field=field, needs=needs)
    ignored = f"; ignored: {', '.join(found.ignored)}" if found.ignored else ""
    say(f"{path}: {found.prompts} prompts ({found.format}){ignored}")
    return found


def in_options(error: OverlapError, options: Mapping[str, str]) -> OverlapError:
    """The error in the words of a command, which knows files. options: pool → its option."""
    named = ", ".join(f"{pool}: {option}" for pool, option in options.items())
    return OverlapError(
        f"{error.problem} ({named})",
        field=error.field,
        value=error.value,
        expected=error.expected,
        remedy="remove the shared prompts from one of the two files",
    )
