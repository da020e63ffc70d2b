"""`titer new`: a file with a method or measure of one's own to start from."""

from __future__ import annotations

import keyword
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from titer.cli.console import out
from titer.errors import UsageError


class New(StrEnum):
    defense = "defense"
    attack = "attack"
    measure = "measure"


SETTINGS = "{lr: 1e-3, batch_size: 16}"
REFUSAL = f"""\
  - name: refusal
    defense: {{name: sft_refusal, settings: {SETTINGS}}}
    steps: 200"""
BATTERY = f"""\
    - {{attack: full_sft, settings: {SETTINGS}}}
    - {{attack: lora_sft, settings: {{lr: 3e-3, batch_size: 16}}}}"""
EXACT = "{measure: exact_answer, settings: {reads: harm}, part: harm/judge}"
PARTS = {
    New.defense: {
        "CANDIDATE": REFUSAL.replace("refusal\n", "NAME\n").replace("sft_refusal", "NAME"),
        "ATTACKS": BATTERY,
        "HARM": EXACT,
    },
    New.attack: {
        "CANDIDATE": REFUSAL,
        "ATTACKS": f"{BATTERY}\n    - {{attack: NAME, settings: {SETTINGS}}}",
        "HARM": EXACT,
    },
    New.measure: {
        "CANDIDATE": REFUSAL,
        "ATTACKS": BATTERY,
        "HARM": "{measure: NAME, part: harm/judge}",
    },
}
TRY = {
    New.defense: "titer defend tiny:aligned --method NAME --plugin FILE --set lr=1e-3 --out DIR",
    New.attack: "titer attack tiny:aligned --method NAME --plugin FILE --set lr=1e-3",
    New.measure: "titer attack tiny:aligned --harm-measure NAME --plugin FILE --set lr=1e-3",
}


def register(app: typer.Typer) -> None:
    app.command("new")(new_command)


def new_command(
    kind: Annotated[New, typer.Argument(help="What to write.")],
    name: Annotated[str, typer.Argument(help="Its name: lower case letters, digits and _.")],
    folder: Annotated[Path, typer.Option("--to", help="The folder to write to.")] = Path("."),
) -> None:
    """Write a working defense, attack or measure to start from: NAME.py, a plug-in file that passes
    the conformance checks, and NAME.yaml, a small study with it.
    """
    _check_name(kind, name)
    file, study = folder / f"{name}.py", folder / f"{name}.yaml"
    for path in (file, study):
        if path.exists():
            raise UsageError(
                "this file exists already",
                field="name",
                value=str(path),
                expected="a new file",
                remedy="choose another name, or another folder with --to",
            )
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(plugin_text(kind, name), "utf-8")
    study.write_text(study_text(kind, name), "utf-8")
    out.print(
        f"Written: {file} and {study}.\n\n"
        f"Check it:           python {file}\n"
        f"Its settings:       titer show {name} --plugin {file}\n"
        f"Try it:             {TRY[kind].replace('NAME', name).replace('FILE', str(file))}\n"
        f"A study with it:    titer run {study}\n\n"
        f"Other studies use it with `plugins: [{name}.py]`. In a Python script, put\n"
        f"`titer.register({class_name(name)})` at the top level, or decorate the class with "
        "@titer.register.",
        markup=False,
    )


def class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def plugin_text(kind: New, name: str) -> str:
    """The plug-in file: a template with its names replaced."""
    text = _template(f"{kind}.py")
    text = text.replace(class_name(f"my_{kind}"), class_name(name)).replace(f"my_{kind}", name)
    return text.replace(f'"""My {kind}:', f'"""{name.replace("_", " ").capitalize()}:')


def study_text(kind: New, name: str) -> str:
    text = _template("study.yaml")
    for place, part in PARTS[kind].items():
        text = text.replace(place, part)
    return text.replace("NAME", name)


def _template(name: str) -> str:
    return Path(__file__).with_name("templates").joinpath(name).read_text("utf-8")


def _check_name(kind: New, name: str) -> None:
    """Raises UsageError for a name that is no Python name or is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name) or keyword.iskeyword(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
        raise UsageError(
            "this cannot be the name of a file and of a class",
            field="name",
            value=name,
            expected="lower case letters, digits and _, beginning with a letter",
            remedy=f"for example {near}" if len(near) > 1 and not keyword.iskeyword(near) else None,
        )
    if name in _known(kind):
        raise UsageError(
            f"a {kind} with this name comes with titer".replace("a attack", "an attack"),
            field="name",
            value=name,
            expected="a name of its own",
            remedy=f"`titer list {kind}s` shows the names that are taken",
        )


def _known(kind: New) -> dict[str, Any]:
    if kind is New.measure:
        from titer.measures.registry import measures

        return dict(measures())
    from titer.methods.registry import methods

    return dict(methods("attack" if kind is New.attack else "defense"))
